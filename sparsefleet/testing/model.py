"""Checks for models."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsefleet.errors import UserError
from sparsefleet.plugin import DataInfo, Model
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import disturb_global_seeds

_NUMBERS = (
    DataInfo("classification", (1, 8, 8), 10),
    DataInfo("regression", (3, 16, 16), 2),
    DataInfo("classification", (3, 32, 32), 10),
)
_ARBITRARY = 7
"""What an empty tensor is filled with, as memory may be."""
_TOKENS = (DataInfo("classification", (12,), 3, vocabulary=50), DataInfo("regression", (7,), 2, vocabulary=20))


def _on_meta(plugin: Model, data: DataInfo) -> nn.Module:
    with torch.device("meta"):
        return plugin.build(data, lambda _: nn.ReLU())


def examples(plugin: Model) -> list[DataInfo]:
    """The data that the model takes: it refuses others with a UserError; one that takes no numbers takes tokens."""
    numbers = [data for data in _NUMBERS if _takes(plugin, data)]
    taken = numbers or [data for data in _TOKENS if _takes(plugin, data)]
    expect(
        bool(taken), "a network for pictures or tokens", "a UserError for all of them", "raise it only for data that the model cannot take"
    )
    return taken


def _takes(plugin: Model, data: DataInfo) -> bool:
    try:
        _on_meta(plugin, data)
    except UserError:
        return False
    return True


def inputs(data: DataInfo) -> Tensor:
    """Four invented examples."""
    n = 4 * torch.Size(data.input_shape).numel()
    rng = Rng("model-input")
    return (rng.integers(n, data.vocabulary) if data.vocabulary else rng.normal(n).float()).view(4, *data.input_shape)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def builds_on_meta(plugin: Model) -> None:
    """No tensor is allocated while a model is built, and each module can fill its own tensors afterwards."""
    for data in examples(plugin):
        for name, module in _on_meta(plugin, data).named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            expect(all(tensor.is_meta for tensor in own), "tensors on the meta device", f"{name} is not", "name no device while building")
            expect(
                not own or callable(getattr(module, "reset_parameters", None)),
                f"reset_parameters() on {name} ({type(module).__name__})",
                "none",
                "define it and fill the module's own parameters and buffers there",
            )


def fills_every_tensor(plugin: Model) -> None:
    """After ``to_empty`` the modules' ``reset_parameters`` fill every parameter and buffer: what ``__init__`` wrote is gone by then."""
    network = _on_meta(plugin, examples(plugin)[0])
    for name, module in network.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if not own:
            continue
        module.to_empty(device="cpu", recurse=False)
        for tensor in module.parameters(recurse=False):
            tensor.detach().fill_(_ARBITRARY)
        for tensor in module.buffers(recurse=False):
            tensor.fill_(_ARBITRARY)
        module.reset_parameters()
        for key in own:
            left = int((getattr(module, key) == _ARBITRARY).sum())
            said = f"{name}.{key} ({type(module).__name__})"
            expect(
                left == 0, f"every number of {said} filled", f"{left} as memory happened to be", "fill it in reset_parameters(), in place"
            )


def maps_inputs_to_outputs(plugin: Model) -> None:
    """``(batch, *input_shape)`` in, ``(batch, n_outputs)`` out, finite, and logits for a classification."""
    for data in examples(plugin):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = plugin.build(data, lambda _: nn.ReLU())
        y = network(inputs(data))
        expect(y.shape == (4, data.n_outputs), f"outputs of shape (4, {data.n_outputs})", tuple(y.shape), "end in data.n_outputs units")
        expect(bool(torch.isfinite(y).all()), "finite outputs", "NaN or infinity", "check the initialisation")
        shares = data.task == "classification" and bool((y >= 0).all()) and torch.allclose(y.sum(1), torch.ones(4))
        expect(not shares, "logits", "probabilities, which add up to 1", "leave softmax to the loss: cross entropy takes it again")


def uses_the_activation(plugin: Model) -> None:
    """The user's activation stands where the non-linearity is: ``act(features)`` for the units it gets, one for each place."""
    data, calls, made = examples(plugin)[0], Counter[nn.Module](), dict[nn.Module, int]()

    def act(features: int) -> nn.Module:
        module = nn.Softplus()  # that of no architecture
        made[module] = features
        module.register_forward_pre_hook(lambda module, args: seen(module, args[0].shape))
        return module

    def seen(module: nn.Module, shape: torch.Size) -> None:
        calls[module] += 1
        units, at = made[module], {shape[1], shape[-1]}
        expect(
            units in at, f"act({' or act('.join(map(str, sorted(at)))}) for inputs of shape {tuple(shape)}", f"act({units})", "act(units)"
        )

    with torch.random.fork_rng(devices=[]):
        try:
            network = plugin.build(data, act).eval()
        except UserError:
            return  # it says that it has activations of its own
    modules, often = dict(network.named_modules()), Counter[str]()
    for name in plugin.prunable(network):
        if name in modules:
            modules[name].register_forward_hook(lambda *_, name=name: often.update([name]))
    with torch.no_grad(), _OwnNonlinearities() as own:
        network(inputs(data))
    mend = "call act(features) in build() for every non-linearity, or raise a UserError unless act(1) is the nn.ReLU that you have"
    expect(bool(calls) or not own.called, "the activation that build() is given", f"{', '.join(sorted(own.called))} in its place", mend)
    shared = max(calls.values(), default=0)
    expect(
        shared <= max(often.values(), default=1),
        "an activation of its own at each place",
        f"one that is called {shared} times",
        "act(features) once for each place: k-winners learn statistics of the units before them",
    )


class _OwnNonlinearities(TorchFunctionMode):
    """Names of the elementwise non-linearities that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("relu", "relu_", "gelu", "silu", "leaky_relu", "elu", "hardswish", "mish", "relu6"):
            self.called.add(name)
        return func(*args, **(kwargs or {}))


def trains_every_parameter(plugin: Model) -> None:
    """Every parameter gets a gradient, and every channel of the inputs reaches the outputs: what is never called counts all the same."""
    for data in examples(plugin):
        network, x = _on_cpu(plugin, data, 0).train(), inputs(data)
        if not data.vocabulary:
            x = x.requires_grad_()
        network(x).square().sum().backward()
        unused = [name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None]
        mend = "register only what forward() calls, detach nothing, and freeze with requires_grad_(False)"
        expect(not unused, "a gradient at every parameter", f"none at {', '.join(unused[:6])}", mend)
        if x.grad is not None:
            deaf = torch.nonzero(x.grad.abs().flatten(2).sum((0, 2)) == 0).flatten().tolist() if x.dim() > 2 else []
            expect(
                not deaf, f"outputs that depend on all {data.input_shape[0]} channels", f"not on channel {deaf[:6]}", "use data.input_shape"
            )


def names_its_prunable_modules(plugin: Model) -> None:
    """Names exist, are different, and belong to modules with a weight matrix."""
    network = _on_meta(plugin, examples(plugin)[0])
    names = list(plugin.prunable(network))
    modules = dict(network.named_modules())
    expect(bool(names) and len(set(names)) == len(names), "one or more different names", names, "override prunable()")
    for name in names:
        weight = getattr(modules.get(name), "weight", None)
        got = "no such module" if name not in modules else f"{type(modules[name]).__name__}"
        expect(weight is not None and weight.dim() >= 2, f"a weight matrix at {name!r}", got, "leave norms and biases out of prunable()")


def narrows(plugin: Model) -> None:
    """``narrowed(1)`` is the same network; smaller factors have fewer parameters and the same depth."""
    data = examples(plugin)[0]
    whole = _count(_on_meta(plugin, data))
    try:
        counts = [_count(_on_meta(plugin.narrowed(factor), data)) for factor in (1.0, 0.5, 0.1, 1e-9)]
    except TypeError as error:
        mend = 'def narrowed(self, factor): return self.model_copy(update={"width": max(1, round(self.width * factor))}); without hidden units: self'
        fail("a narrower network, for the arm small-dense", error, mend)
    expect(counts[0] == whole, f"{whole} parameters at factor 1", counts[0], "round widths, do not truncate")
    expect(counts == sorted(counts, reverse=True) and counts[-1] > 0, "fewer parameters with a smaller factor", counts, "width at least 1")
    depth = len(plugin.prunable(_on_meta(plugin, data)))
    narrow = len(plugin.prunable(_on_meta(plugin.narrowed(0.1), data)))
    expect(narrow == depth, f"{depth} prunable modules when narrowed", narrow, "change widths only")


def builds_the_same_twice(plugin: Model) -> None:
    """Two networks have the same tensors and take over each other's state dict; building moves no global generator."""
    for data in examples(plugin):
        disturb_global_seeds(3)
        before = torch.get_rng_state(), random.getstate()
        shapes = [{name: value.shape for name, value in _on_meta(plugin, data).state_dict().items()} for _ in range(2)]
        expect(shapes[0] == shapes[1], "the same names and shapes in two builds", "others", "number modules from 0 in every build")
        same = torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
        expect(same, "global generators as they were", "moved", "draw nothing and seed nothing in build(): reset_parameters() draws")
        first, second = _on_cpu(plugin, data, 0), _on_cpu(plugin, data, 1)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            same = torch.equal(first(inputs(data)), second(inputs(data)))
        expect(same, "equal outputs after load_state_dict", "they differ", "register what outputs depend on as parameters or buffers")


def evaluates_each_sample_by_itself(plugin: Model) -> None:
    """In evaluation a network gives the same outputs again, whatever the global generators do, and takes a single example."""
    for data in examples(plugin):
        network, x, seen = _on_cpu(plugin, data, 0), inputs(data), []
        with torch.no_grad():
            for seed in (1, 2):
                disturb_global_seeds(seed)
                seen.append(network(x))
            expect(torch.equal(*seen), "equal outputs in two evaluations", "they differ", "draw only in training; nn.Dropout does so")
            alone = network(x[:1])
        close = alone.shape == (1, data.n_outputs) and torch.allclose(alone, seen[0][:1], rtol=1e-4, atol=1e-5)
        expect(
            close, "the outputs of an example that stands alone", "others in a batch", "squeeze() drops a batch of 1: name its dimensions"
        )


def _on_cpu(plugin: Model, data: DataInfo, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return plugin.build(data, lambda _: nn.ReLU()).eval()


def lists_prunable_modules_in_order(plugin: Model) -> None:
    """``prunable`` names modules from input to output: the first is called first, the last one last."""
    data = examples(plugin)[0]
    network = _on_cpu(plugin, data, 0)
    modules, called = dict(network.named_modules()), []
    names = [name for name in plugin.prunable(network) if name in modules]
    for name in names:
        modules[name].register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        network(inputs(data))
    if called:  # modules inside an LSTM or an attention are replaced before they are pruned, and are not called here
        listed = [name for name in names if name in called]
        ends = (listed[0], listed[-1]) == (called[0], called[-1])
        mend = "order prunable() as forward() calls: sequential pruners and `is_last` rely on it"
        expect(ends, f"{called[0]} first and {called[-1]} last, as they are called", f"{listed[0]} … {listed[-1]}", mend)


def stays_a_plugin_when_narrowed(plugin: Model) -> None:
    """``narrowed`` gives a plugin of the same class, which a trial can carry as JSON, and leaves the first as it was."""
    before = plugin.model_dump_json()
    for factor in (0.5, 1e-9):
        try:
            narrow = plugin.narrowed(factor)
        except TypeError:
            return  # narrows has told
        expect(type(narrow) is type(plugin), f"a {type(plugin).__name__}", type(narrow).__name__, "self.model_copy(update={...})")
        mend = "self.model_copy(update={...}) with whole numbers within the fields' bounds: max(1, round(width * factor))"
        try:
            again = type(plugin).model_validate_json(narrow.model_dump_json())
        except ValueError as error:
            fail(f"parameters that are valid at factor {factor:g}", error, mend)
        expect(again == narrow, "an equal plugin after a round trip through JSON", again, mend)
    expect(plugin.model_dump_json() == before, "an unchanged plugin", plugin, "self.model_copy(update={...})")


CHECKS = (
    builds_on_meta,
    builds_the_same_twice,
    fills_every_tensor,
    maps_inputs_to_outputs,
    uses_the_activation,
    trains_every_parameter,
    evaluates_each_sample_by_itself,
    names_its_prunable_modules,
    lists_prunable_modules_in_order,
    narrows,
    stays_a_plugin_when_narrowed,
)
