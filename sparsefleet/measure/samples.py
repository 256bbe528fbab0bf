"""Raw samples of one comparison: every block, kept or not, as compact JSON. Every figure and verdict is a pure function of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsefleet.errors import UserError

PROTOCOL = "sf-measure/1"
BODY_SCHEMA = "sf-samples/3"
_OLDER = ("sf-samples/1", "sf-samples/2")
SIDES = ("dense", "sparse", "second")
"""What every comparison times: dense, sparse, and a second copy of dense."""
RIVAL = "rival"
"""A fourth side that a comparison may have: the small-dense net."""
PLAIN, UPDATE = "plain", "update"
"""The sides of the samples that tell what an update of the topology costs: calls without one, and pairs of a call with one and the next."""
LETTERS = {"D": "dense", "S": "sparse", "E": "second", "R": RIVAL, "P": PLAIN, "U": UPDATE}


@dataclass(frozen=True)
class Samples:
    """What the clock said in one process, and how it was asked.

    Attributes:
        key: seeds the order of the sides and the bootstrap.
        clock: ``cpu-1``, ``cpu-n`` or ``cuda``.
        threads: that the sides may use.
        calls: calls per block, by side.
        order: per round, the sides in the order they ran: ``D`` dense, ``S`` sparse, ``E`` second dense copy, ``R`` rival.
        seconds: whole blocks in seconds, by side, one per round.
        cpu_s: CPU time of the blocks, by side; empty where the clock has none.
        process_s: CPU time of the whole process during the blocks, by side; empty where the clock has none.
        mhz: SM clock of the blocks, by side; empty where not readable.
        mhz_rated: what it ought to be; None where not readable.
        machine: counters before the first round and after every round, ``[wall, own, busy, steal]`` in seconds; empty where none.
        dropped: per round, why it was dropped, or an empty string.
        rounds_because: why this many rounds, decided before the first of them.
        warmup: ``seconds``, ``steady`` (1 or 0) and calls and seconds per call of each side.
        updates: of what happens at some calls of the sparse side only (rewiring): ``PLAIN`` against ``UPDATE``; None where nothing does.
        update_share: share of the training's steps at which it does.
    """

    key: str
    clock: str
    threads: int
    n_cpus: int
    tick_s: float
    inputs: int
    calls: dict[str, int]
    order: list[str]
    seconds: dict[str, list[float]]
    cpu_s: dict[str, list[float]]
    process_s: dict[str, list[float]]
    mhz: dict[str, list[float]]
    machine: list[list[float]]
    rounds_because: str
    warmup: dict[str, float]
    dropped: list[str] = field(default_factory=list)
    mhz_rated: float | None = None
    updates: Samples | None = None
    update_share: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Samples:
        """From JSON values."""
        updates = values.get("updates")
        return cls(**{**values, "updates": None if updates is None else cls.of(updates)})

    @property
    def rounds(self) -> int:
        """Rounds run, dropped ones included."""
        return len(self.order)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that were timed."""
        return tuple(self.seconds)

    def per_call(self, side: str) -> list[float]:
        """Seconds per call, one per round, without what ``updates`` adds."""
        return [seconds / self.calls[side] for seconds in self.seconds[side]]


@dataclass(frozen=True)
class Body:
    """Everything a timing rests on: the raw samples of its processes, and the facts that they do not show.

    Attributes:
        job: ``config_key``, ``op``, ``batch_size`` and the other conditions, as they stand in the timing.
        level: ``screen`` or ``publish``.
        processes: one per fresh process.
        facts: baseline, correctness, conditions, cost, memory; see ``sparsefleet.measure.assemble``.
        fingerprint: of the machine, complete.
    """

    job: dict[str, Any]
    level: str
    processes: list[Samples]
    facts: dict[str, Any]
    fingerprint: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Compact JSON; floats survive exactly."""
        return json.dumps({"schema": BODY_SCHEMA, **asdict(self)}, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Body:
        """What ``to_bytes`` wrote.

        Raises:
            UserError: not a samples file of this version.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise UserError("not a file of raw samples", cause=str(error)) from error
        schema = value.pop("schema", None) if isinstance(value, dict) else None
        if schema in _OLDER:
            raise UserError(
                f"raw samples of an older version ({schema}), which this one cannot judge",
                cause="they hold no raw times of updates of the topology, and were held against weaker gates",
                fix="sparsefleet resume SWEEP --remeasure measures anew what an older version timed",
            )
        if schema != BODY_SCHEMA:
            raise UserError(f"not a file of raw samples of schema {BODY_SCHEMA!r}")
        try:
            return cls(**{**value, "processes": [Samples.of(one) for one in value["processes"]]})
        except (KeyError, TypeError) as error:
            raise UserError("a file of raw samples with unknown or missing keys", cause=str(error)) from error


def reference(data: bytes) -> str:
    """``samples.json#sha256=HEX``: how a timing names its body."""
    return f"samples.json#sha256={hashlib.sha256(data).hexdigest()}"


def letters(sides: Sequence[str]) -> str:
    """The sides as letters, in the order of ``LETTERS``."""
    return "".join(letter for letter, side in LETTERS.items() if side in sides)
