"""Checks for layers: every storage computes what a masked dense float64 layer computes, and takes over new connections in place."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.module import SparseModule, remap_sites
from sparsefleet.nn.projection import fitted_nnz
from sparsefleet.plugin import Layer
from sparsefleet.rng import Rng
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import SMALL_DENSE, WIDE, layer_of

_SHAPE, _NNZ, _BATCH = (12, 20), 60, 5
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Of every layer's output and gradients, relative to the largest value of the float64 reference; published in docs/layers.md."""


@dataclass
class _Pass:
    """Output and gradients of one forward and backward pass, float64."""

    output: Tensor
    by_input: Tensor
    by_weight: Tensor
    by_bias: Tensor


def _template(shape: tuple[int, int]) -> nn.Linear:
    return nn.Linear(shape[1], shape[0], device="meta")


def _connections(plugin: Layer, nnz: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Connections:
    """About ``nnz`` connections that the layer's topology can hold."""
    nnz = _SHAPE[0] * _SHAPE[1] if plugin.topology == "all" else fitted_nnz(nnz, _SHAPE, plugin.topology, plugin.tile) if nnz else 0
    conn = layer_of(_SHAPE, nnz, dtype=dtype, seed=seed)
    conn.grad = conn.dense = None
    if plugin.topology not in ("constant-fan-in", "block"):
        return conn
    none = conn.row[:0]
    empty = Connections("layer", _SHAPE, none, none, none, constant_fan_in=plugin.topology == "constant-fan-in", tile=plugin.tile)
    row, col = empty.random_absent(nnz, Rng(seed, "fitting sites"))
    return replace(empty, row=row, col=col, weight=Rng(seed, "weight").normal(row.numel()).to(dtype))


def _case(plugin: Layer, nnz: int, dtype: torch.dtype) -> tuple[Connections, Tensor, Tensor, Tensor]:
    draw = Rng("layer-case")
    bias, x, up = draw.normal(_SHAPE[0]), draw.normal(_BATCH * _SHAPE[1]), draw.normal(_BATCH * _SHAPE[0])
    return _connections(plugin, nnz, dtype), bias.to(dtype), x.to(dtype).view(_BATCH, -1), up.to(dtype).view(_BATCH, -1)


def _reference(conn: Connections, bias: Tensor, x: Tensor, up: Tensor) -> _Pass:
    """Written out with a dense matrix and no autograd."""
    weight = torch.zeros(conn.shape, dtype=torch.float64)
    weight[conn.row, conn.col] = conn.weight.double()
    output = x.double() @ weight.T + bias.double()
    by_weight = (up.double().T @ x.double())[conn.row, conn.col]
    return _Pass(output, up.double() @ weight, by_weight, up.double().sum(0))


def _computing(module: nn.Module, conn: Connections) -> Connections:
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


def _measured(module: nn.Module, x: Tensor, up: Tensor) -> _Pass:
    x = x.clone().requires_grad_()
    output = module(x)
    output.backward(up)
    by_weight = module.grad_values() if isinstance(module, SparseModule) else _grad(module, "weight").reshape(-1)
    if by_weight is None or x.grad is None:
        fail("gradients by the weights and by the input", "none", "let both take part in autograd")
    return _Pass(output.detach().double(), x.grad.double(), by_weight.double(), _grad(module, "bias").double())


def _grad(module: nn.Module, name: str) -> Tensor:
    parameter = getattr(module, name, None)
    if not isinstance(parameter, Tensor) or parameter.grad is None:
        fail(f"a gradient at the layer's {name}", "none", f"hold the {name} as a Parameter called {name!r}")
    return parameter.grad


def _compare(want: _Pass, got: _Pass, dtype: torch.dtype) -> None:
    for name in ("output", "by_input", "by_weight", "by_bias"):
        a, b = getattr(want, name), getattr(got, name)
        expect(a.shape == b.shape, f"{name} of shape {tuple(a.shape)}", tuple(b.shape), "see SparseModule")
        error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0
        expect(
            error <= _TOLERANCE[dtype],
            f"{name} as a masked dense float64 layer gives it, relative error at most {_TOLERANCE[dtype]:g} in {dtype}",
            f"{error:.3g}",
            "compare a 2 x 3 layer by hand; gradients by absent weights must not leak into stored ones",
        )


def equals_the_masked_reference(plugin: Layer) -> None:
    """Output and all gradients agree with a dense matrix that has zeros at absent sites; also with one connection and with all."""
    for dtype in _TOLERANCE:
        for nnz in (_NNZ, 1, 0, _SHAPE[0] * _SHAPE[1]):
            conn, bias, x, up = _case(plugin, nnz, dtype)
            module = plugin.build(_template(_SHAPE), conn, bias)
            _compare(_reference(_computing(module, conn), bias, x, up), _measured(module, x, up), dtype)


def convolves_like_the_reference(plugin: Layer) -> None:
    """A layer that stores Conv2d agrees with torch's dense convolution in output and gradients."""
    if "Conv2d" not in plugin.kinds:
        return
    shape = (6, 4 * 9)  # 6 output channels, 4 input channels, a 3 x 3 kernel
    conn = layer_of(shape, shape[0] * shape[1] if plugin.topology == "all" else 50)
    conn.grad = conn.dense = None
    draw = Rng("conv-case")
    bias, x, up = draw.normal(6), draw.normal(2 * 4 * 49).view(2, 4, 7, 7), draw.normal(2 * 6 * 16).view(2, 6, 4, 4)
    module = plugin.build(nn.Conv2d(4, 6, 3, stride=2, padding=1, device="meta"), conn, bias)
    weight = torch.zeros(shape, dtype=torch.float64)
    weight[conn.row, conn.col] = _computing(module, conn).weight
    weight, dense_bias, dense_x = weight.view(6, 4, 3, 3).requires_grad_(), bias.clone().requires_grad_(), x.clone().requires_grad_()
    output = nn.functional.conv2d(dense_x, weight, dense_bias, stride=2, padding=1)
    by_x, by_weight, by_bias = torch.autograd.grad(output, (dense_x, weight, dense_bias), up)
    want = _Pass(output.detach(), by_x, by_weight.view(shape)[conn.row, conn.col], by_bias)
    _compare(want, _measured(module, x, up), torch.float64)


def tells_its_connections(plugin: Layer) -> None:
    """``connections()`` returns what the layer was built from."""
    if plugin.topology == "all":
        return
    conn, bias, _, _ = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    told = module.connections()
    same = torch.equal(told.flat, conn.flat) and torch.equal(told.weight, conn.weight)
    expect(same, "the sites and weights of the connections given", f"{told.nnz} connections, others", "list them by ascending site")


def rewires_in_place(plugin: Layer) -> None:
    """After ``set_topology`` it computes with the new connections, in the same Parameter, and optimizer slots follow."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    parameter = module.weight_parameter
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(x).backward(up)
    optimizer.step()
    module.enforce()
    tile = conn.row // conn.tile * -(-conn.n_in // conn.tile) + conn.col // conn.tile
    rank = torch.unique(tile, return_inverse=True)[1]  # among the tiles, or among the connections where a tile is one site
    keep = rank % 3 != 0
    expect(not bool(keep.all()), "a layer with connections to drop", f"all {conn.nnz} kept", "let the topology hold at least one")
    new = conn.select(keep).random_absent(int((~keep).sum()), Rng("rewire"))
    remap = remap_sites(module.flat_sites(), keep, new[0] * conn.n_in + new[1], regrown_are_kept=False)
    slot = optimizer.state[parameter]["momentum_buffer"]
    values = remap.gather(module.values())
    before = _by_connection(module, slot)
    moved = module.remap_slot(slot, remap)
    parameter.grad = None
    module.set_topology(remap, values)
    expect(module.weight_parameter is parameter, "the same Parameter object", "another one", "write into it; optimizers hold on to it")
    wrong = int((_by_connection(module, moved) != remap.gather(before)).sum())
    expect(wrong == 0, "slots that stay with kept connections and are zero at grown ones", f"{wrong} wrong", "see SparseModule.remap_slot")
    after = Connections("layer", conn.shape, remap.flat // conn.n_in, remap.flat % conn.n_in, values)
    module.zero_grad()
    stepped = bias - 0.1 * up.sum(0)  # SGD's first step
    _compare(_reference(_computing(module, after), stepped, x, up), _measured(module, x, up), torch.float64)


def _by_connection(module: SparseModule, slot: Tensor) -> Tensor:
    """``(nnz,)``: a slot, read through the module as if it were the weights."""
    parameter = module.weight_parameter.detach()
    weights = parameter.clone()
    parameter.copy_(slot)
    values = module.values().clone()
    parameter.copy_(weights)
    return values


def finds_the_best_absent(plugin: Layer) -> None:
    """``best_absent`` ranks absent sites by the gradient that a dense layer would have there."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    module.watch_absent(True)
    module(x).backward(up)
    k = fitted_nnz(17, _SHAPE, plugin.topology, plugin.tile)
    want = conn.best_absent(k, up.T @ x)
    got = module.connections().best_absent(k)
    expect(torch.equal(want, got), f"the {k} absent sites with the largest dense gradient", "others", "the gradient by w * mask, not by w")


def ranks_the_absent_within_units(plugin: Layer) -> None:
    """``best_absent_per_row`` does so within every output unit, for methods with a constant fan-in (SRigL)."""
    if plugin.topology in ("all", "block"):
        return
    conn, bias, x, up = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    module.watch_absent(True)
    module(x).backward(up)
    counts = torch.arange(_SHAPE[0]) % 4
    want = conn.best_absent_per_row(counts, up.T @ x)
    got = module.best_absent_per_row(module.flat_sites(), counts)
    expect(torch.equal(want, got), "0 to 3 absent sites of each output unit with the largest dense gradient", "others", "ties by position")


def survives_its_state_dict(plugin: Layer) -> None:
    """A checkpoint of one module, loaded into another with the same number of connections, gives the same outputs."""
    conn, bias, x, _ = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    elsewhere = _connections(plugin, conn.nnz, seed=9)
    other = plugin.build(_template(_SHAPE), elsewhere, torch.zeros_like(bias))
    other.load_state_dict(module.state_dict())
    expect(torch.equal(module(x), other(x)), "equal outputs after load_state_dict", "they differ", "register indices and masks as buffers")


def stands_in_for_linear(plugin: Layer) -> None:
    """Any leading dimensions, also none; no bias; gradients only where they are asked."""
    conn, bias, x, up = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    flat = module(x)
    close = torch.allclose(module(x.view(_BATCH, 1, 1, -1)).view(_BATCH, -1), flat, rtol=0, atol=1e-12)
    close = close and torch.allclose(module(x[0]), flat[0], rtol=0, atol=1e-12)
    expect(close and module(x[0]).shape == (_SHAPE[0],), "(..., n_in) to (..., n_out) for 0 and 3 leading dimensions", "another result", "")
    bare = plugin.build(nn.Linear(_SHAPE[1], _SHAPE[0], bias=False, device="meta"), conn, None)
    expect(torch.allclose(bare(x) + bias, flat, rtol=0, atol=1e-12), "the same without its bias", "another result", "bias may be None")
    module.requires_grad_(False)
    given = x.clone().requires_grad_()
    module(given).backward(up)
    expect(given.grad is not None and all(p.grad is None for p in module.parameters()), "a gradient for the input alone", "others", "")


def survives_its_copy(plugin: Layer) -> None:
    """``copy.deepcopy`` gives a module with the same outputs, which trains on its own."""
    conn, bias, x, up = _case(plugin, _NNZ, torch.float64)
    module = plugin.build(_template(_SHAPE), conn, bias)
    twin = copy.deepcopy(module)
    expect(torch.equal(twin(x), module(x)), "the same outputs of a copy", "others", "see __getstate__ and __reduce__")
    twin(x).backward(up)
    expect(all(p.grad is None for p in module.parameters()), "a copy with parameters of its own", "shared ones", "")


def names_what_it_needs(plugin: Layer) -> None:
    """Where it cannot compute, it raises a UserError that says what it needs."""
    shape = (64, 64)
    flat = (torch.arange(shape[0] * shape[1] // 2) // 2) * 4 + torch.arange(shape[0] * shape[1] // 2) % 2
    conn = Connections("layer", shape, flat // shape[1], flat % shape[1], torch.ones(flat.numel()))
    try:
        plugin.build(_template(shape), conn, None)(torch.ones(shape[::-1]))
    except UserError as error:
        wanted = [plugin.requires.replace("_", "-"), *plugin.devices] if plugin.requires else list(plugin.devices)
        expect(any(word in str(error).lower() for word in wanted), f"an error that names {' or '.join(wanted)}", str(error), "")
        return
    fail("a UserError", "a result", "raise one on every other device")


def runs_here(plugin: Layer) -> bool:
    """True if the layer computes on a CPU and what it imports is installed."""
    return "cpu" in plugin.devices and (not plugin.requires or importlib.util.find_spec(plugin.requires) is not None)


def allocates_by_connections(plugin: Layer) -> None:
    """A training step of a 1,000,000 x 1,000,000 layer with few connections: 16 MiB, 48 bytes per connection, 8 per activation of the batch.

    1,000 connections, or a fan-in of 1 where it must be constant.
    """
    if plugin.stores_dense:
        return
    batch = 2
    for width, limit in ((SMALL_DENSE, SMALL_DENSE * SMALL_DENSE), (WIDE, 16 * 2**20 + 8 * 2 * WIDE * batch)):
        conn = _wide(plugin, width)
        limit += 48 * conn.nnz if width == WIDE else 0
        x = torch.ones(batch, width, requires_grad=True)
        up = torch.ones(batch, width)
        module = plugin.build(_template((width, width)), conn, torch.zeros(width))

        def step(module: nn.Module = module, x: Tensor = x, up: Tensor = up) -> None:
            module(x).backward(up)

        used = peak_bytes(step)
        expect(
            used < limit,
            f"less than {limit / 2**20:.0f} MiB for a step at {width:,} x {width:,} and batch {batch}",
            f"{used / 2**20:.1f} MiB",
            "torch.sparse.mm's own backward builds the dense gradient: write an autograd.Function (sparsefleet.ops.csr)",
        )


def _wide(plugin: Layer, width: int) -> Connections:
    if plugin.topology == "free":
        return layer_of((width, width), 1000, dtype=torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    empty = Connections("layer", (width, width), none, none, none, constant_fan_in=plugin.topology == "constant-fan-in", tile=plugin.tile)
    row, col = empty.random_absent(fitted_nnz(1000, (width, width), plugin.topology, plugin.tile), Rng("wide"))
    return replace(empty, row=row, col=col, weight=torch.ones(row.numel()))


CHECKS = (
    equals_the_masked_reference,
    convolves_like_the_reference,
    tells_its_connections,
    rewires_in_place,
    finds_the_best_absent,
    ranks_the_absent_within_units,
    stands_in_for_linear,
    survives_its_copy,
    survives_its_state_dict,
    allocates_by_connections,
)
