"""What runs where, for whoever watches. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sparsefleet.fleet.shape import Node
from sparsefleet.fleet.slots import Slot


def utilisation(nodes: Sequence[Node], slots: Sequence[Slot], silent: Collection[str], refused: Collection[str]) -> list[dict[str, Any]]:
    """``nodes`` of the event ``fleet``.

    Args:
        silent: Ray's ids of nodes that say nothing.
        refused: of those on which no supervisor starts.
    """
    told = []
    for node in nodes:
        here = [slot for slot in slots if slot.node_id == node.id]
        busy = [slot for slot in here if slot.jobs]
        told.append(
            {
                "node": here[0].node if here and here[0].ready else node.name,
                "state": "silent" if node.id in silent else "refused" if node.id in refused else "alive",
                "slots": len(here),
                "busy": len(busy),
                "cpus": node.total.cpus,
                "cpus_used": round(node.total.cpus - node.free.cpus, 3),
                "gpus": node.total.gpus,
                "gpus_used": round(node.total.gpus - node.free.gpus, 3),
                "trials": [slot.jobs[0].key for slot in busy],
            }
        )
    return told
