"""Whether a GPU was ours alone and cool while something was timed on it, as its driver tells. Pure but for ``look``; never starts a CUDA context."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsefleet.measure import nvidia
from sparsefleet.measure.verdict import reason

_HELD_BACK = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons; a power cap and an idle GPU are no faults."""
_WAITS, _WAIT_S = 3, 10.0


@dataclass(frozen=True)
class Look:
    """One GPU at one moment.

    Attributes:
        pids: processes that compute on it, as the driver numbers them; None where it does not tell.
        held_back: why its clock is held back.
    """

    pids: frozenset[int] | None
    held_back: tuple[str, ...]


def look(device: str) -> Look:
    """The GPU now."""
    uuid = uuid_of(device)
    listed = nvidia.compute_processes()
    now = next((facts for facts in nvidia.facts_now() if facts.get("uuid") == uuid), {})
    return Look(None if listed is None or uuid is None else frozenset(pid for gpu, pid, _ in listed if gpu == uuid), held_back(now))


def look_when_cool(device: str) -> Look:
    """The GPU once nothing holds its clock back, or after half a minute."""
    for _ in range(_WAITS):
        found = look(device)
        if not found.held_back:
            return found
        time.sleep(_WAIT_S)
    return look(device)


def held_back(now: Mapping[str, str]) -> tuple[str, ...]:
    """Why the clock is held back, from what ``nvidia.facts_now`` says of one GPU."""
    try:
        bits = int(now.get("clocks_throttle_reasons.active", ""), 16)
    except ValueError:  # the driver does not tell
        return ()
    return tuple(name for bit, name in _HELD_BACK.items() if bits & bit)


def conditions(before: Look, after: Look, pid: int) -> list[str]:
    """Reasons against what was timed between two looks.

    Args:
        before: before this process touched the GPU: whoever is there is a stranger.
        after: this process is one of those that are there. Within a container the driver may know it by another number.
        pid: this process's own.
    """
    found = []
    strangers = set(before.pids or ()) - {pid}
    come = set(after.pids or ()) - strangers - {pid}
    if pid not in (after.pids or ()) and come:
        come.remove(max(come))  # ourselves, by another number
    if strangers | come:
        found.append(reason("shared_device", who=", ".join(f"pid {one}" for one in sorted(strangers | come))))
    if after.held_back or before.held_back:
        found.append(reason("hot", what=", ".join(dict.fromkeys((*before.held_back, *after.held_back)))))
    return found


def uuid_of(device: str, environment: Mapping[str, str] = os.environ, listed: Sequence[str] | None = None) -> str | None:
    """The UUID of ``cuda[:n]``, or None where it cannot be told.

    ``CUDA_VISIBLE_DEVICES`` is followed. GPUs of different models are numbered by CUDA and by the driver alike only with
    ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Args:
        listed: UUIDs in the driver's order; default: asked for.
    """
    uuids = [facts.get("uuid", "") for facts in nvidia.stable_facts()] if listed is None else listed
    place = int(device.partition(":")[2] or 0)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(len(uuids))] if visible is None else [name.strip() for name in visible.split(",")]
    if place >= len(names):
        return None
    name = names[place]
    if name.isdigit():
        return uuids[int(name)] if int(name) < len(uuids) else None
    return next((uuid for uuid in uuids if name and uuid.startswith(name)), name or None)


def rated_mhz(device: str) -> float | None:
    """The SM clock that the GPU is set to run at, or its highest one; None where the driver does not tell."""
    uuid = uuid_of(device)
    facts = next((facts for facts in nvidia.stable_facts() if facts.get("uuid") == uuid), {})
    for name in ("clocks.applications.graphics", "clocks.max.sm"):
        if facts.get(name, "").isdigit():
            return float(facts[name])
    return None
