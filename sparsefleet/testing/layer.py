"""Checks for layers: every storage computes what a masked dense float64 layer computes, and takes over new connections in place."""

from __future__ import annotations

import copy
import importlib.util

import torch
from torch import nn

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.projection import fitted_nnz
from sparsefleet.plugin import Layer
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.layer_case import (
    BATCH,
    NNZ,
    SHAPE,
    TOLERANCE,
    Pass,
    case_of,
    compare,
    computing,
    measured_pass,
    reference_pass,
    template_of,
)
from sparsefleet.testing.samples import layer_of


def equals_the_masked_reference(plugin: Layer) -> None:
    """Output and all gradients agree with a dense matrix that has zeros at absent sites; also with one connection and with all."""
    for dtype in TOLERANCE:
        for nnz in (NNZ, 1, 0, SHAPE[0] * SHAPE[1]):
            conn, bias, x, up = case_of(plugin, nnz, dtype)
            module = plugin.build(template_of(SHAPE), conn, bias)
            compare(reference_pass(computing(module, conn), bias, x, up), measured_pass(module, x, up), dtype)


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
    weight[conn.row, conn.col] = computing(module, conn).weight
    weight, dense_bias, dense_x = weight.view(6, 4, 3, 3).requires_grad_(), bias.clone().requires_grad_(), x.clone().requires_grad_()
    output = nn.functional.conv2d(dense_x, weight, dense_bias, stride=2, padding=1)
    by_x, by_weight, by_bias = torch.autograd.grad(output, (dense_x, weight, dense_bias), up)
    want = Pass(output.detach(), by_x, by_weight.view(shape)[conn.row, conn.col], by_bias)
    compare(want, measured_pass(module, x, up), torch.float64)


def tells_its_connections(plugin: Layer) -> None:
    """``connections()`` returns what the layer was built from."""
    if plugin.topology == "all":
        return
    conn, bias, _, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    told = module.connections()
    same = torch.equal(told.flat, conn.flat) and torch.equal(told.weight, conn.weight)
    expect(same, "the sites and weights of the connections given", f"{told.nnz} connections, others", "list them by ascending site")


def finds_the_best_absent(plugin: Layer) -> None:
    """``best_absent`` ranks absent sites by the gradient that a dense layer would have there."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    module.watch_absent(True)
    module(x).backward(up)
    k = fitted_nnz(17, SHAPE, plugin.topology, plugin.tile)
    want = conn.best_absent(k, up.T @ x)
    got = module.connections().best_absent(k)
    expect(torch.equal(want, got), f"the {k} absent sites with the largest dense gradient", "others", "the gradient by w * mask, not by w")


def ranks_the_absent_within_units(plugin: Layer) -> None:
    """``best_absent_per_row`` does so within every output unit, for methods with a constant fan-in (SRigL)."""
    if plugin.topology in ("all", "block"):
        return
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    module.watch_absent(True)
    module(x).backward(up)
    counts = torch.arange(SHAPE[0]) % 4
    want = conn.best_absent_per_row(counts, up.T @ x)
    got = module.best_absent_per_row(module.flat_sites(), counts)
    expect(torch.equal(want, got), "0 to 3 absent sites of each output unit with the largest dense gradient", "others", "ties by position")


def stands_in_for_linear(plugin: Layer) -> None:
    """Any leading dimensions, also none; no bias; gradients only where they are asked."""
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    flat = module(x)
    close = torch.allclose(module(x.view(BATCH, 1, 1, -1)).view(BATCH, -1), flat, rtol=0, atol=1e-12)
    close = close and torch.allclose(module(x[0]), flat[0], rtol=0, atol=1e-12)
    expect(
        close and module(x[0]).shape == (SHAPE[0],),
        "(..., n_in) to (..., n_out) for 0 and 3 leading dimensions",
        "others",
        "x.reshape(-1, n_in) and back",
    )
    bare = plugin.build(nn.Linear(SHAPE[1], SHAPE[0], bias=False, device="meta"), conn, None)
    expect(torch.allclose(bare(x) + bias, flat, rtol=0, atol=1e-12), "the same without its bias", "another result", "bias may be None")
    module.requires_grad_(False)
    given = x.clone().requires_grad_()
    module(given).backward(up)
    expect(
        given.grad is not None and all(p.grad is None for p in module.parameters()),
        "a gradient for the input alone",
        "others",
        "ask ctx.needs_input_grad",
    )


def computes_at_every_call(plugin: Layer) -> None:
    """The two hundredth product is computed as the first one was, also where new inputs lie in the memory of old ones."""
    conn, bias, x, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    want, other = module(x).detach().clone(), module(2 * x).detach().clone()
    with torch.no_grad():
        for call in range(200):
            got = module(x)
            expect(
                torch.equal(got, want), f"the same outputs at call {call + 3}", "others", "compute every product in full; count no calls"
            )
        x.mul_(2)
        same = torch.allclose(module(x), other, rtol=1e-12, atol=0)
        expect(same, "outputs of the inputs as they are now", "those of earlier ones", "cache nothing by data_ptr() or id()")


def survives_its_copy(plugin: Layer) -> None:
    """``copy.deepcopy`` gives a module with the same outputs, which trains on its own."""
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    twin = copy.deepcopy(module)
    expect(torch.equal(twin(x), module(x)), "the same outputs of a copy", "others", "see __getstate__ and __reduce__")
    twin(x).backward(up)
    expect(
        all(p.grad is None for p in module.parameters()),
        "a copy with parameters of its own",
        "shared ones",
        "see __deepcopy__ and __reduce__",
    )


def names_what_it_needs(plugin: Layer) -> None:
    """Where it cannot compute, it raises a UserError that says what it needs."""
    shape = (64, 64)
    flat = (torch.arange(shape[0] * shape[1] // 2) // 2) * 4 + torch.arange(shape[0] * shape[1] // 2) % 2
    conn = Connections("layer", shape, flat // shape[1], flat % shape[1], torch.ones(flat.numel()))
    try:
        plugin.build(template_of(shape), conn, None)(torch.ones(shape[::-1]))
    except UserError as error:
        wanted = [plugin.requires.replace("_", "-"), *plugin.devices] if plugin.requires else list(plugin.devices)
        expect(
            any(word in str(error).lower() for word in wanted),
            f"an error that names {' or '.join(wanted)}",
            str(error),
            "name the device or the package in the message",
        )
        return
    fail("a UserError", "a result", "raise one on every other device")


def runs_here(plugin: Layer) -> bool:
    """True if the layer computes on a CPU and what it imports is installed."""
    return "cpu" in plugin.devices and (not plugin.requires or importlib.util.find_spec(plugin.requires) is not None)


def takes_any_batch(plugin: Layer) -> None:
    """Inputs may be empty, transposed, sliced or expanded; evaluation and training compute the same."""
    conn, bias, x, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    want = module(x).detach()
    for training in (False, True):
        same = torch.allclose(module.train(training)(x), want, rtol=0, atol=1e-12)
        expect(same, "the same outputs in training and evaluation", "others", "a layer only multiplies: no dropout, no noise")
    views = {
        "transposed": x.T.contiguous().T,
        "sliced": torch.stack([x, -x], -1).flatten(1)[:, ::2],
        "expanded": x[:1].expand(BATCH, -1),
    }
    for how, view in views.items():
        got, wanted = module(view), want[:1].expand(BATCH, -1) if how == "expanded" else want
        close = got.shape == want.shape and torch.allclose(got, wanted, rtol=0, atol=1e-12)
        expect(close, f"the same outputs for a {how} input", "others", "x.contiguous() before reading its memory")
    none = torch.zeros(0, SHAPE[1], dtype=torch.float64, requires_grad=True)
    empty = module(none)
    expect(empty.shape == (0, SHAPE[0]), f"outputs of shape (0, {SHAPE[0]}) for no examples", tuple(empty.shape), "allow a batch of 0")
    empty.sum().backward()
    left = [name for name, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    expect(
        not left, "no gradient from no examples", f"at {', '.join(left)}", "sums over an empty batch are zero: torch.zeros, not torch.empty"
    )


CHECKS = (
    equals_the_masked_reference,
    convolves_like_the_reference,
    tells_its_connections,
    finds_the_best_absent,
    ranks_the_absent_within_units,
    stands_in_for_linear,
    takes_any_batch,
    computes_at_every_call,
    survives_its_copy,
)
