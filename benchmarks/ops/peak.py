"""Peak memory of a training step: the layer, its gradients, the optimizer's slots and every temporary; inputs and code are not counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import NotRun
from benchmarks.ops.cases import Shape
from benchmarks.ops.peers import Kind
from benchmarks.ops.problem import Problem, make
from benchmarks.ops.sides import Inputs, Side
from benchmarks.ops.timing import side_of
from sparsefleet.measure.memory import Peak, peak_of

_SMALL, _SMALL_BATCH = Shape(64, 64, 0.5), 16


def peak(path: Path, kind: Kind, layout: str, device: str) -> dict[str, Any]:
    """``peak_bytes`` of two steps, above what the process held before the layer was made; ``build_bytes``, at most held while it was made.

    A small layer takes a step first, so that what libraries keep from their first call on is not counted.
    """
    side_of(make(_SMALL, _SMALL_BATCH).on(device), kind, layout).step(0)
    problem = Problem.load(path, device)
    inputs = Inputs(problem, kind, layout)
    before = _held(device)
    peer, built = peak_of(lambda: kind.make(problem.conn), device)
    side = Side(peer, inputs)

    def steps() -> None:
        side.step(0)
        side.step(1)

    resident = _held(device) - before
    stepped = peak_of(steps, device)[1]
    return {"peak_bytes": resident + _known(stepped), "build_bytes": _known(built)}


def _known(peak: Peak) -> int:
    if peak.bytes is None:
        raise NotRun(peak.why_not)
    return peak.bytes


def _held(device: str) -> int:
    """Bytes that the process holds now, after what was freed went back to the system."""
    peak_of(lambda: None, device)
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
