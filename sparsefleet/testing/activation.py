"""Checks for activations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparsefleet.plugin import Activation
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect
from sparsefleet.testing.samples import disturb_global_seeds

_FEATURES = 40


def _batch(*more: int) -> Tensor:
    shape = (16, _FEATURES, *more)
    return Rng("activation-input").normal(torch.Size(shape).numel()).float().view(shape)


def keeps_shape_and_input(plugin: Activation) -> None:
    """Same shape out, finite, input untouched, in training and evaluation, for units and for channels."""
    for x in (_batch(), _batch(3, 3)):
        for training in (True, False):
            module = plugin.build(_FEATURES).train(training)
            before = x.clone()
            y = module(x)
            expect(y.shape == x.shape, f"shape {tuple(x.shape)}", tuple(y.shape), "an activation acts elementwise or by sample")
            expect(bool(torch.isfinite(y).all()), "finite outputs", "NaN or infinity", "guard divisions and exponentials")
            expect(torch.equal(x, before), "an unchanged input", "it was written to", "no in-place operations on the input")


def passes_gradients(plugin: Activation) -> None:
    """Something can be learned through it."""
    x = _batch().requires_grad_()
    plugin.build(_FEATURES)(x).sum().backward()
    got = 0 if x.grad is None else int((x.grad != 0).sum())
    expect(got > 0, "a gradient at some inputs", f"{got} non-zero", "do not detach the path from input to output")


def starts_from_meta(plugin: Activation) -> None:
    """Models are built on the meta device: ``reset_parameters`` must fill every tensor of the module."""
    with torch.device("meta"):
        module = plugin.build(_FEATURES)
    for part in module.modules():
        if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            reset = getattr(part, "reset_parameters", None)
            expect(callable(reset), f"reset_parameters() on {type(part).__name__}", "none", "fill its tensors there, in place")
            part.to_empty(device="cpu", recurse=False)
            for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
                tensor.detach().fill_(7)  # what to_empty leaves is arbitrary
            part.reset_parameters()  # type: ignore[operator]
    same = torch.equal(module(_batch()), plugin.build(_FEATURES)(_batch()))
    expect(same, "the outputs of a module built on the cpu", "others", "reset_parameters() must fill every parameter and buffer")


def saves_what_it_learns(plugin: Activation) -> None:
    """All that training changes is in the state dict."""
    module = plugin.build(_FEATURES)
    for _ in range(3):
        module(_batch())
    _end_epoch(module)
    again = plugin.build(_FEATURES)
    again.load_state_dict(copy.deepcopy(module.state_dict()))
    same = torch.equal(module(_batch()), again(_batch())) and torch.equal(module(_batch()), again(_batch()))
    expect(same, "equal outputs after load_state_dict", "they differ", "register running statistics and counters as buffers")


def is_deterministic(plugin: Activation) -> None:
    """Same inputs, same outputs."""
    seen = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(plugin.build(_FEATURES).eval()(_batch()))
    expect(torch.equal(*seen), "equal outputs in evaluation", "they differ", "draw nothing at evaluation")


def counts_winners_exactly(plugin: Activation) -> None:
    """A sparse activation leaves zeros, and lets as many units through when all inputs tie as when none do."""
    if not plugin.sparse:
        return
    zeros = int((plugin.build(_FEATURES).eval()(_batch()) == 0).sum())
    expect(zeros > 0 or getattr(plugin, "density", 0) == 1, "some units at zero", "none", "or leave sparse = False")
    distinct = 1 + _batch().abs().argsort(1).argsort(1).float() / _FEATURES  # positive, no ties within a sample
    module = plugin.build(_FEATURES).eval()
    usual, tied = (module(x).count_nonzero(1) for x in (distinct, torch.ones_like(distinct)))
    same = torch.equal(usual, tied)
    expect(same, f"{usual[0]} units at tied inputs as well", tied.tolist()[:4], "choose winners by (score, position), not by a threshold")


def _end_epoch(module: nn.Module) -> None:
    on_epoch = getattr(module, "on_epoch", None)
    if callable(on_epoch):
        on_epoch()


CHECKS = (
    keeps_shape_and_input,
    passes_gradients,
    starts_from_meta,
    saves_what_it_learns,
    is_deterministic,
    counts_winners_exactly,
)
