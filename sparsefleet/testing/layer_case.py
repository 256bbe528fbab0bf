"""What checks of layers compare: one layer's connections, a pass through it, and the same pass through a masked dense float64 matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.projection import fitted_nnz
from sparsefleet.plugin import Layer
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import layer_of

SHAPE, NNZ, BATCH = (12, 20), 60, 5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Of every layer's output and gradients, relative to the largest value of the float64 reference; published in docs/layers.md."""


_FORMULAS = {
    "output": "output = x @ W.T + bias, with zeros in W at absent sites",
    "by_input": "grad_input = grad_output @ W",
    "by_weight": "grad_weight[i] = (grad_output[:, row[i]] * x[:, col[i]]).sum(), of stored connections alone",
    "by_bias": "grad_bias = grad_output.sum(0)",
}
"""What a failed comparison reminds of, by the name of what was compared."""


@dataclass
class Pass:
    """Output and gradients of one forward and backward pass, float64."""

    output: Tensor
    by_input: Tensor
    by_weight: Tensor
    by_bias: Tensor


def template_of(shape: tuple[int, int]) -> nn.Linear:
    """What the layer replaces, on the meta device."""
    return nn.Linear(shape[1], shape[0], device="meta")


def connections_for(
    plugin: Layer, nnz: int, dtype: torch.dtype = torch.float64, seed: int = 0, shape: tuple[int, int] = SHAPE
) -> Connections:
    """About ``nnz`` connections that the layer's topology can hold."""
    nnz = shape[0] * shape[1] if plugin.topology == "all" else fitted_nnz(nnz, shape, plugin.topology, plugin.tile) if nnz else 0
    conn = layer_of(shape, nnz, dtype=dtype, seed=seed)
    conn.grad = conn.dense = None
    if plugin.topology not in ("constant-fan-in", "block"):
        return conn
    none = conn.row[:0]
    empty = Connections("layer", shape, none, none, none, constant_fan_in=plugin.topology == "constant-fan-in", tile=plugin.tile)
    row, col = empty.random_absent(nnz, Rng(seed, "fitting sites"))
    return replace(empty, row=row, col=col, weight=Rng(seed, "weight").normal(row.numel()).to(dtype))


def case_of(
    plugin: Layer, nnz: int, dtype: torch.dtype, *, shape: tuple[int, int] = SHAPE, batch: int = BATCH
) -> tuple[Connections, Tensor, Tensor, Tensor]:
    """Connections, ``(n_out,)`` bias, ``(batch, n_in)`` inputs and ``(batch, n_out)`` gradients of the output."""
    draw = Rng("layer-case")
    bias, x, up = draw.normal(shape[0]), draw.normal(batch * shape[1]), draw.normal(batch * shape[0])
    return connections_for(plugin, nnz, dtype, shape=shape), bias.to(dtype), x.to(dtype).view(batch, -1), up.to(dtype).view(batch, -1)


def reference_pass(conn: Connections, bias: Tensor, x: Tensor, up: Tensor) -> Pass:
    """Written out with a dense matrix and no autograd."""
    weight = torch.zeros(conn.shape, dtype=torch.float64)
    weight[conn.row, conn.col] = conn.weight.double()
    output = x.double() @ weight.T + bias.double()
    by_weight = (up.double().T @ x.double())[conn.row, conn.col]
    return Pass(output, up.double() @ weight, by_weight, up.double().sum(0))


def computing(module: nn.Module, conn: Connections) -> Connections:
    """``conn`` with the weights that the module says it multiplies with: those of ``conn``, or nearest to them at its few bits."""
    if not isinstance(module, SparseModule):
        return conn
    used, bits = module.multiplied(), module.value_bits
    if bits < 8 * module.weight_parameter.element_size():
        largest = conn.weight.new_zeros(conn.n_out).scatter_reduce_(0, conn.row, conn.weight.abs(), "amax")
        step = (largest / (2 ** (bits - 1) - 1))[conn.row]
        n_far = int(((used - conn.weight).abs() > 0.5001 * step).sum())
        expect(n_far == 0, f"weights rounded to the nearest of {2**bits - 1} levels of their row", f"{n_far} others", "see multiplied()")
        return replace(conn, weight=used)
    expect(
        torch.equal(used, conn.weight), "multiplied() to be the weights of a layer that stores them whole", "others", "or say value_bits"
    )
    return conn


def measured_pass(module: nn.Module, x: Tensor, up: Tensor) -> Pass:
    """What the layer computes."""
    x = x.clone().requires_grad_()
    output = module(x)
    output.backward(up)
    by_weight = module.grad_values() if isinstance(module, SparseModule) else _grad(module, "weight").reshape(-1)
    if by_weight is None or x.grad is None:
        fail("gradients by the weights and by the input", "none", "let both take part in autograd")
    return Pass(output.detach().double(), x.grad.double(), by_weight.double(), _grad(module, "bias").double())


def _grad(module: nn.Module, name: str) -> Tensor:
    parameter = getattr(module, name, None)
    if not isinstance(parameter, Tensor) or parameter.grad is None:
        fail(f"a gradient at the layer's {name}", "none", f"hold the {name} as a Parameter called {name!r}")
    return parameter.grad


def compare(want: Pass, got: Pass, dtype: torch.dtype, where: str = "") -> None:
    """Fails where the two differ by more than the dtype's tolerance; ``where`` ends what was expected."""
    for name, mend in _FORMULAS.items():
        a, b = getattr(want, name), getattr(got, name)
        expect(a.shape == b.shape, f"{name} of shape {tuple(a.shape)}{where}", tuple(b.shape), mend)
        error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0
        expect(
            error <= TOLERANCE[dtype],
            f"{name} as a masked dense float64 layer gives it, relative error at most {TOLERANCE[dtype]:g} in {dtype}{where}",
            f"a relative error of {error:.3g}",
            f"{mend}; compare a 2 x 3 layer by hand",
        )
