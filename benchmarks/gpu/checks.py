"""The kernels on this device against float64 at odd sizes, twice for the same bits, and out of a CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figures import Figure, Run
from benchmarks.gpu.device import DEVICE, require
from benchmarks.ops.problem import reference
from sparsefleet.connections import Connections
from sparsefleet.measure.correctness import FLOOR, relative_error
from sparsefleet.measure.graph import recorded
from sparsefleet.ops.pattern import Pattern, pattern_of
from sparsefleet.ops.triton_linear import triton_backward, triton_forward
from sparsefleet.rng import Rng

SHAPES = (
    (777, 1001, None, 1),
    (777, 1001, None, 5),
    (777, 1001, None, 130),
    (2000, 784, 78, 4),
    (2000, 784, 78, 64),
    (513, 1025, 3, 33),
)
"""Outputs, inputs, fan-in (None: any number, rows and columns without any among them), batch."""
_DENSITY = 0.03


@dataclass(frozen=True)
class Layer:
    """Arrays on the device, and the answers."""

    x: Tensor
    dy: Tensor
    values: Tensor
    pattern: Pattern
    wanted: tuple[Tensor, Tensor, Tensor]

    def results(self) -> tuple[Tensor, ...]:
        """Output and both gradients, feature-major."""
        dx, dw = triton_backward(self.dy, self.x, self.values, self.pattern, True, True)
        assert dx is not None
        assert dw is not None
        return triton_forward(self.x, self.values, self.pattern), dx, dw

    def error(self, results: tuple[Tensor, ...]) -> float:
        """The worst relative error over what fp32 and bf16 are allowed; the values' gradient is always held against fp32."""
        y, dx, dw = self.wanted
        floor = FLOOR["fp32" if self.x.dtype == torch.float32 else "bf16"]
        pairs = zip(results, (y.t(), dx.t(), dw), (floor, floor, FLOOR["fp32"]), strict=True)
        return max(relative_error(got.cpu().double(), wanted) / allowed for got, wanted, allowed in pairs)


def layer(n_out: int, n_in: int, fan_in: int | None, batch: int, dtype: torch.dtype, device: str) -> Layer:
    """The same numbers on every device."""
    rng = Rng(0, "gpu checks", n_out, n_in, fan_in or 0, batch)
    if fan_in is None:
        flat = rng.distinct(round(_DENSITY * n_out * n_in), n_out * n_in)
        row, col = flat // n_in, flat % n_in
        kept = (row % 50 != 7) & (col % 50 != 9)
        row, col = row[kept], col[kept]
    else:
        row = torch.arange(n_out).repeat_interleave(fan_in)
        col = torch.stack([rng.distinct(fan_in, n_in) for _ in range(n_out)]).flatten()
    values, x, dy = (rng.normal(n).float() for n in (row.numel(), batch * n_in, batch * n_out))
    x, dy = x.view(batch, n_in).to(dtype), dy.view(batch, n_out).to(dtype)
    wanted = reference(Connections("layer", (n_out, n_in), row, col, values), x, dy)
    pattern = pattern_of(row.to(device), col.to(device), (n_out, n_in), fan_in=fan_in)
    return Layer(x.t().contiguous().to(device), dy.t().contiguous().to(device), values.to(device), pattern, wanted)


def figures(run: Run) -> list[Figure]:
    """Errors by type of the activations, results that differ between two runs, and between a run and a replay."""
    require()
    made, moved, replayed = [], 0, 0
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        worst = 0.0
        for shape in SHAPES:
            one = layer(*shape, dtype, DEVICE)
            first, again = one.results(), one.results()
            worst = max(worst, one.error(first))
            moved += _differing(first, again)
            replayed += _differing(first, _from_graph(one, first))
        made.append(Figure(f"largest error over the allowed one, {name}", "times", worst, target=1.0, at_least=False))
        run.say(f"{name}: {worst:.3g} times the error allowed")
    made.append(Figure("results that differ between two runs", "of 36", moved, target=0.0, at_least=False))
    return [*made, Figure("results that differ in a replayed CUDA graph", "of 36", replayed, target=0.0, at_least=False)]


def _differing(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> int:
    return sum(not torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _from_graph(one: Layer, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of a replay; zeros where nothing could be recorded."""
    kept = tuple(torch.zeros_like(t) for t in like)

    def call() -> None:
        for place, result in zip(kept, one.results(), strict=True):
            place.copy_(result)

    replay = recorded([call], one.x.device)
    for place in kept:
        place.zero_()
    if replay is not None:
        replay()
    return kept
