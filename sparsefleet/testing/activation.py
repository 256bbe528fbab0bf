"""Checks for activations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparsefleet.plugin import Activation
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import disturb_global_seeds

_FEATURES = 40


def _batch(*more: int) -> Tensor:
    shape = (16, _FEATURES, *more)
    return Rng("activation-input").normal(torch.Size(shape).numel()).float().view(shape)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the last bits, which depend on where in a vector register a number stands."""
    return torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def _up(y: Tensor) -> Tensor:
    """A gradient for ``y`` that differs from unit to unit: that of a sum is lost where the outputs of a sample add up to a constant."""
    return Rng("activation-up").normal(y.numel()).to(y.dtype).view(y.shape)


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
    """Something can be learned through it: gradients are there, and finite, at zero and at inputs of ±100 too."""
    x = _batch().requires_grad_()
    y = plugin.build(_FEATURES)(x)
    expect(y.requires_grad, "a path from input to output", "outputs that are detached", "do not detach the path from input to output")
    y.backward(_up(y))
    got = 0 if x.grad is None else int((x.grad != 0).sum())
    expect(got > 0, "a gradient at some inputs", f"{got} non-zero", "do not detach the path from input to output")
    extreme = (100 * _batch().sign() * torch.arange(_FEATURES).remainder(3)).requires_grad_()
    y = plugin.build(_FEATURES)(extreme)
    y.backward(_up(y))
    mend = (
        "torch.where keeps NaN of the branch not taken: clamp its input too; exp(x) overflows at 88, torch.nn.functional has stable forms"
    )
    for what, values in (("outputs", y), ("gradients", extreme.grad)):
        ok = values is not None and bool(torch.isfinite(values).all())
        expect(ok, f"finite {what} at inputs of -100, 0 and 100", "NaN or infinity", mend)


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
    same = torch.equal(module.eval()(_batch()), plugin.build(_FEATURES).eval()(_batch()))
    expect(same, "the outputs of a module built on the cpu", "others", "reset_parameters() must fill every parameter and buffer")


def saves_what_it_learns(plugin: Activation) -> None:
    """All that training changes is in the state dict: taken up in the middle, it goes on to the same bits, over the end of an epoch too."""
    module = plugin.build(_FEATURES)
    _train(module)
    again = plugin.build(_FEATURES)
    again.load_state_dict(copy.deepcopy(module.state_dict()))
    other = plugin.build(_FEATURES)  # of another trial in the same process, which leaves its traces in classes and modules
    other(2 * _batch())
    same = all(torch.equal(_train(module), _train(again)) for _ in range(4))
    same = same and all(torch.equal(a, b) for a, b in zip(module.buffers(), again.buffers(), strict=True))
    expect(same, "equal outputs after load_state_dict", "they differ", "register running statistics and counters as buffers")


def _train(module: nn.Module) -> Tensor:
    """The outputs after three batches and the end of an epoch; what is drawn in training is the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for scale in (1.0, -1.0, 0.5):
            module(scale * _batch())
        on_epoch = getattr(module, "on_epoch", None)
        if callable(on_epoch):
            on_epoch()
        output: Tensor = module(_batch())
    return output


def learns_in_training_alone(plugin: Activation) -> None:
    """Evaluation changes no statistics, so that measuring a network does not change it."""
    module = plugin.build(_FEATURES)
    module(_batch())
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first, second = module(_batch()), module(_batch())
    touched = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
    expect(not touched, "an unchanged state in evaluation", f"changed: {', '.join(touched)}", "if self.training: count")
    expect(torch.equal(first, second), "the same outputs again", "others", "if self.training: count; draw nothing in evaluation")


def keeps_the_dtype(plugin: Activation) -> None:
    """float64 in, float64 out, and gradients too; likewise float32."""
    for dtype in (torch.float32, torch.float64):
        x = _batch().to(dtype).requires_grad_()
        y = plugin.build(_FEATURES).to(dtype)(x)
        expect(y.dtype == dtype, f"{dtype} outputs for {dtype} inputs", y.dtype, "compare in any dtype, but return x's: y.to(x.dtype)")


def takes_each_sample_by_itself(plugin: Activation) -> None:
    """In evaluation the order of a batch and who else is in it change nothing; one sample is a batch as well."""
    module = plugin.build(_FEATURES)
    alone = module(_batch()[:1])
    expect(
        alone.shape == (1, _FEATURES) and bool(torch.isfinite(alone).all()), "finite outputs for one sample", alone, "no variance of one"
    )
    module.eval()
    whole = module(_batch())
    mend = "compare units within a sample (dim=1), never over the batch, in evaluation"
    turned = module(_batch().flip(0)).flip(0)
    expect(_close(whole, turned), "outputs that follow their sample when the batch is turned round", "others", mend)
    expect(_close(whole[:1], module(_batch()[:1])), "the output of a sample that stands alone", "another in a batch", mend)
    pictures = _batch(3, 3)
    same = _close(module(pictures)[:1], module(pictures[:1]))
    expect(same, "the output of a picture that stands alone", "another in a batch", mend)


def takes_channels_as_units(plugin: Activation) -> None:
    """Inputs ``(batch, features, 1, 1)`` give what ``(batch, features)`` give, and the order of an input in memory changes nothing."""
    module = plugin.build(_FEATURES).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # equal ones would hide that they belong to units
            parameter.add_(0.01 * torch.arange(parameter.numel(), dtype=parameter.dtype).view_as(parameter))
        units, channels = module(_batch()), module(_batch()[:, :, None, None])
    mend = "dimension 1 holds the units: parameter.view(1, -1, 1, 1), and flatten(1) before units are compared"
    same = channels.shape[:2] == units.shape and _close(channels[:, :, 0, 0], units)
    expect(same, "the same outputs for a 1 x 1 picture", "others", mend)
    for x, view in ((_batch(), _batch().T.contiguous().T), (_batch(3, 3), _batch(3, 3).to(memory_format=torch.channels_last))):
        try:
            got = module(view)
        except RuntimeError as error:
            fail(
                "outputs for an input that is transposed in memory, as sparse layers give it",
                repr(error),
                "x.reshape(...), not x.view(...)",
            )
        same = _close(got, module(x))
        expect(same, "the same outputs for an input that is transposed in memory", "others", "index by dimensions, not by memory")


def passes_gradients_where_units_won(plugin: Activation) -> None:
    """Who was set to zero gets no gradient: a sparse activation is sparse in its backward pass too."""
    if not plugin.sparse:
        return
    x = _batch().requires_grad_()
    y = plugin.build(_FEATURES)(x)
    y.backward(_up(y))
    assert x.grad is not None
    leaked = int(((y == 0) & (x.detach() != 0) & (x.grad != 0)).sum())
    expect(
        leaked == 0,
        "no gradient at units that were set to zero",
        f"{leaked} have one",
        "torch.where(wins, x, 0.0), no straight-through sum",
    )


def _declared_count(plugin: Activation) -> float | None:
    """Units that it promises to let through, before rounding: ``density`` of them, or ``k``; None if it promises no number."""
    density, k = getattr(plugin, "density", None), getattr(plugin, "k", None)
    if plugin.sparse and isinstance(density, float):
        return density * _FEATURES
    return min(k, _FEATURES) if plugin.sparse and isinstance(k, int) else None


def has_the_density_that_it_declares(plugin: Activation) -> None:
    """With a parameter ``density`` that share of the units of every sample is let through, with ``k`` that number, up to one unit."""
    count = _declared_count(plugin)
    if count is None:
        return
    n = plugin.build(_FEATURES)(_distinct()).count_nonzero(1)
    wanted = max(1.0, count)
    ok = bool(((n - wanted).abs() <= 1).all())
    expect(ok, f"{wanted:g} of {_FEATURES} units, up to one", n.tolist()[:4], "k = max(1, round(density * features))")


def _distinct() -> Tensor:
    """Positive inputs, no ties within a sample."""
    return 1 + _batch().abs().argsort(1).argsort(1).float() / _FEATURES


def is_deterministic(plugin: Activation) -> None:
    """Same inputs, same outputs."""
    seen = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(plugin.build(_FEATURES).eval()(_batch()))
    expect(torch.equal(*seen), "equal outputs in evaluation", "they differ", "draw nothing at evaluation")


def counts_winners_exactly(plugin: Activation) -> None:
    """A sparse activation leaves zeros; one with a parameter ``density`` or ``k`` lets as many units through when all tie as when none do."""
    if not plugin.sparse:
        return
    count = _declared_count(plugin)
    zeros = int((plugin.build(_FEATURES).eval()(_batch()) == 0).sum())
    expect(zeros > 0 or count == _FEATURES, "some units at zero", "none", "or leave sparse = False")
    if count is None:
        return
    distinct = _distinct()
    module = plugin.build(_FEATURES).eval()
    usual, tied = (module(x).count_nonzero(1) for x in (distinct, torch.ones_like(distinct)))
    same = torch.equal(usual, tied)
    expect(same, f"{usual[0]} units at tied inputs as well", tied.tolist()[:4], "choose winners by (score, position), not by a threshold")


CHECKS = (
    keeps_shape_and_input,
    passes_gradients,
    starts_from_meta,
    saves_what_it_learns,
    learns_in_training_alone,
    is_deterministic,
    keeps_the_dtype,
    takes_each_sample_by_itself,
    takes_channels_as_units,
    passes_gradients_where_units_won,
    has_the_density_that_it_declares,
    counts_winners_exactly,
)
