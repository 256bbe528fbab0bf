"""Why trials wait, in sentences, from what the driver knows and what Ray says of its nodes. Knows nothing of Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparsefleet.fleet.events import WAITING_KEYS
from sparsefleet.fleet.queue import TrialQueue
from sparsefleet.fleet.shape import Node, Shape
from sparsefleet.ledger.rows import TERMINAL, TrialRow

_NODES_NAMED = 3
_MOST_GROUPS = 50


def reasons(queue: TrialQueue, nodes: Sequence[Node], closed: Mapping[str, str], limit: int | None) -> list[dict[str, Any]]:
    """What is open and does not run, as ``{why, n, keys, resources}``; ``keys`` are the first ones, ``resources`` those of a trial in line.

    Args:
        closed: why nothing starts on a node, by Ray's id.
        limit: trials at once, if that many run.
    """
    found = []
    for shape, keys in queue.ready().items():
        why = f"waits for its turn: {limit} at a time" if limit else f"waits for {shape}: {_where(shape, nodes, closed)}"
        found.append(_group(why, keys, queue.rows[keys[0]].resources))
    if queue.alone:
        found.append(_group("waits to run alone, since it ran out of memory", queue.alone))
    for sweep, n in Counter(queue.elsewhere.values()).items():
        keys = [key for key, owner in queue.elsewhere.items() if owner == sweep][:WAITING_KEYS]
        found.append({**_group(f"runs in sweep {sweep}", keys), "n": n})
    behind = queue.waiting()
    for key, keys in list(behind.items())[:_MOST_GROUPS]:
        found.append(_group(_starts_from(queue.rows[key]), keys))
    rest = [key for keys in list(behind.values())[_MOST_GROUPS:] for key in keys]
    return found + ([_group("waits for the trial that it starts from", rest)] if rest else [])


def reason_of(row: TrialRow, by_key: Mapping[str, TrialRow], groups: Sequence[Mapping[str, Any]]) -> str | None:
    """Why one trial waits, for whoever reads the ledger; None if it does not, or nobody knows.

    Args:
        by_key: the sweep's trials.
        groups: of the driver's last ``fleet`` event.
    """
    if row.state in TERMINAL:
        return None
    for group in groups:
        if row.key in group["keys"]:
            return str(group["why"])
    if row.state != "PENDING":
        return None
    start = by_key.get(row.depends_on or "")
    if start is not None and start.state not in TERMINAL:
        return _starts_from(start)
    mine = Shape.of(row.resources)
    return next((str(g["why"]) for g in groups if g.get("resources") is not None and Shape.of(g["resources"]) == mine), None)


def waits_to_measure(shape: Shape, nodes: Sequence[Node], closed: Mapping[str, str]) -> dict[str, Any]:
    """Why no measurement runs: it has a node to itself."""
    whole = replace(shape, cpus=0.0)
    able = [f"{n.name} {closed.get(n.id) or f'{n.free.cpus:g} of {n.total.cpus:g} CPUs free'}" for n in nodes if n.fits(whole)]
    return {"why": f"the measurement waits for a node of its own: {', '.join(able[:_NODES_NAMED])}", "n": 0, "keys": [], "resources": None}


def waits_for_device(why: str) -> dict[str, Any]:
    """A measurement has its node, and somebody else, who may not use this cluster at all, measures there.

    Args:
        why: as it reported.
    """
    return {"why": f"the measurement {why}", "n": 0, "keys": [], "resources": None}


def _group(why: str, keys: Collection[str], resources: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"why": why, "n": len(keys), "keys": list(keys)[:WAITING_KEYS], "resources": resources}


def _starts_from(row: TrialRow) -> str:
    return f"waits for trial {row.spec_id} that it starts from"


def _where(shape: Shape, nodes: Sequence[Node], closed: Mapping[str, str]) -> str:
    """Of the nodes that could hold the shape, what is short on each."""
    able = [node for node in nodes if node.fits(shape)]
    told = [f"{node.name} {closed[node.id]}" if node.id in closed else node.lacks(shape) for node in able]
    more = f" and {len(told) - _NODES_NAMED} more nodes" if len(told) > _NODES_NAMED else ""
    return (", ".join(told[:_NODES_NAMED]) or "no node has it now") + more
