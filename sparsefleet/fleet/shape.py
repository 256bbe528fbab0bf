"""What a trial needs of a node, and what a node has. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EPS = 1e-6


@dataclass(frozen=True, order=True)
class Shape:
    """What one trial needs of a node. ``labels`` are (name, value) pairs, sorted."""

    cpus: float
    gpus: float
    memory_mib: float = 0.0
    accelerator: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Shape:
        """From a trial's resources."""
        return cls(
            float(resources.get("cpus", 1)),
            float(resources.get("gpus", 0)),
            float(resources.get("memory_mib") or 0),
            str(resources.get("accelerator") or ""),
            tuple(sorted((resources.get("labels") or {}).items())),
        )

    def __str__(self) -> str:
        """``2 CPUs, 0.5 GPUs (H100), 4,000 MiB, zone=a``."""
        parts = [f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}"]
        if self.gpus or self.accelerator:
            parts.append(f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}" + (f" ({self.accelerator})" if self.accelerator else ""))
        if self.memory_mib:
            parts.append(f"{self.memory_mib:,.0f} MiB")
        return ", ".join([*parts, *(f"{name}={value}" for name, value in self.labels)])


@dataclass(frozen=True)
class Amount:
    """Of what a node has, or has free."""

    cpus: float
    gpus: float
    memory_mib: float

    def holds(self, shape: Shape) -> int:
        """How many trials of this shape go in. Several with a share below 1 are on one device; none has parts of two."""
        found = [int((have + _EPS) // need) for have, need in ((self.cpus, shape.cpus), (self.memory_mib, shape.memory_mib)) if need]
        if shape.gpus:
            devices = int(self.gpus + _EPS)
            found.append(devices * int((1 + _EPS) // shape.gpus) if shape.gpus < 1 else int(devices // shape.gpus))
        return max(0, min(found, default=1 << 16))


@dataclass(frozen=True)
class Node:
    """One machine: all it has and what nobody has taken."""

    id: str
    name: str
    total: Amount
    free: Amount
    accelerators: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def suits(self, shape: Shape) -> bool:
        """True if its kind is right, however much it has."""
        right = not shape.accelerator or shape.accelerator in self.accelerators
        return right and all(self.labels.get(name) == value for name, value in shape.labels)

    def fits(self, shape: Shape) -> int:
        """How many trials of this shape the empty node holds."""
        return self.total.holds(shape) if self.suits(shape) else 0

    def has_room(self, shape: Shape) -> bool:
        """True if one more surely goes in beside what runs there, of this sweep and of others.

        Ray tells the sum of what is free of all devices: 0.8 of two may be 0.4 of each. Only what fits however it is spread is sure.
        """
        if not self.fits(shape):
            return False
        free, spread = self.free, self.total.gpus * min(shape.gpus, 1.0)
        return free.cpus + _EPS >= shape.cpus and free.memory_mib + _EPS >= shape.memory_mib and free.gpus + _EPS >= spread

    def lacks(self, shape: Shape) -> str:
        """``node-a 0.5 of 1 GPU free``: of what the shape needs, that which is short now."""
        if not self.suits(shape):
            return f"{self.name} is of another kind"
        short = [
            f"{free:g} of {total:g} {unit} free"
            for need, free, total, unit in (
                (shape.gpus, self.free.gpus, self.total.gpus, "GPUs"),
                (shape.cpus, self.free.cpus, self.total.cpus, "CPUs"),
                (shape.memory_mib, round(self.free.memory_mib), round(self.total.memory_mib), "MiB"),
            )
            if need > free + _EPS
        ]
        if short:
            return f"{self.name} {short[0]}"
        in_parts = f"{self.free.gpus:g} of {self.total.gpus:g} GPUs free, perhaps in parts"
        return f"{self.name} {'has room' if self.has_room(shape) else in_parts}"

    def __str__(self) -> str:
        """For a sentence on what there is."""
        kind = [*self.accelerators, *(f"{name}={value}" for name, value in self.labels.items() if not name.startswith("ray.io/"))]
        has = f"{self.total.cpus:g} CPUs, {self.total.gpus:g} GPUs, {self.total.memory_mib:,.0f} MiB"
        return f"{self.name}: {has}" + (f" ({', '.join(kind)})" if kind else "")
