"""Raw samples of one comparison: every block, kept or not, as compact JSON. The estimate is a pure function of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsefleet.errors import IntegrityError, UserError

PROTOCOL = "sf-measure/1"
SAMPLES_SCHEMA = "sf-samples/1"
SIDES = ("dense", "sparse", "second")


@dataclass(frozen=True)
class Samples:
    """What the clock said, and how it was asked.

    Attributes:
        key: seeds the order of the sides and the bootstrap.
        clock: ``cpu-1``, ``cpu-n`` or ``cuda``.
        calls: calls per block, by side.
        order: per round, the sides in the order they ran: ``D`` dense, ``S`` sparse, ``E`` second dense copy.
        seconds: whole blocks in seconds, by side, one per round.
        cpu_s: CPU time of the blocks, by side; empty where the clock has none.
        mhz: SM clock of the blocks, by side; empty where not readable.
        machine: counters before the first round and after every round, ``[wall, own, busy, steal]`` in seconds; empty where none.
        dropped: per round, why it was dropped, or an empty string.
        rounds_because: why this many rounds, decided before the first of them.
        warmup: ``seconds``, ``steady`` (1 or 0) and calls and seconds per call of each side.
    """

    key: str
    clock: str
    n_cpus: int
    tick_s: float
    inputs: int
    calls: dict[str, int]
    order: list[str]
    seconds: dict[str, list[float]]
    cpu_s: dict[str, list[float]]
    mhz: dict[str, list[float]]
    machine: list[list[float]]
    rounds_because: str
    warmup: dict[str, float]
    dropped: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Rounds run, dropped ones included."""
        return len(self.order)

    def per_call(self, side: str) -> list[float]:
        """Seconds per call, one per round."""
        return [seconds / self.calls[side] for seconds in self.seconds[side]]

    def to_bytes(self) -> bytes:
        """Compact JSON; floats survive exactly."""
        return json.dumps({"schema": SAMPLES_SCHEMA, **asdict(self)}, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Samples:
        """The samples that ``to_bytes`` wrote.

        Raises:
            UserError: not a samples file of this version.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise UserError("not a file of raw samples", cause=str(error)) from error
        if not isinstance(value, dict) or value.pop("schema", None) != SAMPLES_SCHEMA:
            raise UserError(f"not a file of raw samples of schema {SAMPLES_SCHEMA!r}")
        try:
            return cls(**value)
        except TypeError as error:
            raise UserError("a file of raw samples with unknown or missing keys", cause=str(error)) from error


def write_all(path: Path, cells: dict[str, Samples]) -> str:
    """Writes several comparisons into one file, by name; returns ``FILE#sha256=HEX``."""
    joined: dict[str, Any] = {name: json.loads(samples.to_bytes()) for name, samples in cells.items()}
    data = json.dumps(joined, separators=(",", ":"), allow_nan=False).encode()
    path.write_bytes(data)
    return f"{path.name}#sha256={hashlib.sha256(data).hexdigest()}"


def read_all(path: Path, sha256: str | None = None) -> dict[str, Samples]:
    """What ``write_all`` wrote.

    Raises:
        IntegrityError: the file's digest is not ``sha256``.
    """
    data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path.name} is not the file that was written", cause="its sha256 differs from the recorded one")
    return {name: Samples.from_bytes(json.dumps(value).encode()) for name, value in json.loads(data).items()}
