"""Checks of a layer in the shapes, dtypes and moments of a network: odd sizes, single examples, several backward passes, evaluation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sparsefleet.nn.projection import fitted_nnz
from sparsefleet.plugin import Layer
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.layer_case import NNZ, SHAPE, TOLERANCE, case_of, compare, computing, measured_pass, reference_pass, template_of

_SHAPES = (((20, 12), 1), ((13, 7), 33), ((7, 13), 70), ((9, 1), 3), ((1, 9), 1))
"""Output and input units, and the examples of a batch."""


def computes_in_any_shape(plugin: Layer) -> None:
    """Layers that narrow and that widen, of odd widths and of one unit, for one example and for seventy, and at large inputs: always exact."""
    for (n_out, n_in), batch in _SHAPES[:1] if plugin.chooses else _SHAPES:  # whom it chooses is checked by itself
        shape = n_out * plugin.multiple_of, n_in * plugin.multiple_of
        conn, bias, x, up = case_of(plugin, max(1, shape[0] * shape[1] // 3), torch.float64, shape=shape, batch=batch)
        module = plugin.build(template_of(shape), conn, bias)
        said = f" at {shape[0]} x {shape[1]} and a batch of {batch}"
        for scale in (1.0, 1e6):
            module.zero_grad()
            want = reference_pass(computing(module, conn), bias, scale * x, up)
            compare(want, measured_pass(module, scale * x, up), torch.float64, said)


def shows_what_is_not_finite(plugin: Layer) -> None:
    """An input that is NaN or infinite reaches the outputs that it is connected to: a training that diverged must be seen."""
    conn, bias, x, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    x[0] = torch.nan
    wired = conn.per_row() > 0
    hidden = int(torch.isfinite(module(x)[0, wired]).sum())
    expect(hidden == 0, "NaN outputs of an input that is all NaN", f"{hidden} finite ones", "no nan_to_num and no clamp inside a layer")


def follows_its_dtype(plugin: Layer) -> None:
    """After ``module.float()`` it computes in float32, after ``module.double()`` in float64 again."""
    conn, bias, x, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    want = module(x).detach()
    mend = "hold tensors as parameters or buffers, which module.to(dtype) converts; keep no dtype of your own"
    for dtype in (torch.float32, torch.float64):
        got = module.to(dtype)(x.to(dtype)).detach()
        expect(got.dtype == dtype, f"{dtype} outputs after module.to({dtype})", got.dtype, mend)
        error = float((got.double() - want).abs().max() / want.abs().max())
        expect(error <= TOLERANCE[torch.float32], f"the same outputs after module.to({dtype})", f"off by {error:.3g}", mend)


def adds_up_gradients(plugin: Layer) -> None:
    """Two backward passes add their gradients, at absent sites too, and inputs of three dimensions get theirs."""
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64, batch=6)
    module = plugin.build(template_of(SHAPE), conn, bias)
    want = reference_pass(computing(module, conn), bias, x, up)
    if plugin.topology != "all":
        module.watch_absent(True)
    first = x[:2].view(2, 1, -1).clone().requires_grad_()
    module(first).backward(up[:2].view(2, 1, -1))
    got = measured_pass(module, x[2:], up[2:])
    if first.grad is None:
        fail("a gradient by an input of three dimensions", "none", "detach nothing: x.reshape(-1, n_in) and back keeps the graph")
    by_input = torch.cat([first.grad.view(2, -1), got.by_input])
    compare(want, replace(got, output=want.output, by_input=by_input), torch.float64, " after two backward passes")
    if plugin.topology != "all":
        k = fitted_nnz(17, SHAPE, plugin.topology, plugin.tile)
        same = torch.equal(conn.best_absent(k, up.T @ x), module.connections().best_absent(k))
        expect(same, f"the {k} absent sites of largest gradient, summed over two passes", "others", "add up while watch_absent is on")


def evaluates_what_it_has_learned(plugin: Layer) -> None:
    """Evaluation uses the weights of this moment, whatever was computed before the last step, and with autograd on and off alike."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(3):
        with torch.no_grad():
            module.eval()(x)
        module.train()(x).backward(up)
        optimizer.step()
        optimizer.zero_grad()
        module.enforce()
        told = module.connections()
        dense = torch.zeros(SHAPE, dtype=torch.float64)
        dense[told.row, told.col] = module.multiplied()
        bias_now = module.bias.detach() if isinstance(module.bias, nn.Parameter) else bias
        with torch.no_grad():
            error = float((module.eval()(x) - x @ dense.T - bias_now).abs().max())
        mend = "keep no copy of the weights between calls, or renew it: an optimizer writes in place, and data_ptr() stays"
        expect(error < 1e-10, f"evaluation by the weights after step {step + 1}", f"off by {error:.3g}", mend)


CHECKS = (computes_in_any_shape, shows_what_is_not_finite, follows_its_dtype, adds_up_gradients, evaluates_what_it_has_learned)
