"""Checks for models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefleet.errors import UserError
from sparsefleet.plugin import DataInfo, Model
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect

_NUMBERS = (
    DataInfo("classification", (1, 8, 8), 10),
    DataInfo("regression", (3, 16, 16), 2),
    DataInfo("classification", (3, 32, 32), 10),
)
_TOKENS = (DataInfo("classification", (12,), 3, vocabulary=50), DataInfo("regression", (7,), 2, vocabulary=20))


def _on_meta(plugin: Model, data: DataInfo) -> nn.Module:
    with torch.device("meta"):
        return plugin.build(data, lambda _: nn.ReLU())


def _examples(plugin: Model) -> list[DataInfo]:
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


def _inputs(data: DataInfo) -> Tensor:
    n = 4 * torch.Size(data.input_shape).numel()
    rng = Rng("model-input")
    return (rng.integers(n, data.vocabulary) if data.vocabulary else rng.normal(n).float()).view(4, *data.input_shape)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def builds_on_meta(plugin: Model) -> None:
    """No tensor is allocated while a model is built, and each module can fill its own tensors afterwards."""
    for data in _examples(plugin):
        for name, module in _on_meta(plugin, data).named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            expect(all(tensor.is_meta for tensor in own), "tensors on the meta device", f"{name} is not", "name no device while building")
            expect(
                not own or callable(getattr(module, "reset_parameters", None)),
                f"reset_parameters() on {name} ({type(module).__name__})",
                "none",
                "define it and fill the module's own parameters and buffers there",
            )


def maps_inputs_to_outputs(plugin: Model) -> None:
    """``(batch, *input_shape)`` in, ``(batch, n_outputs)`` out, finite."""
    for data in _examples(plugin):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = plugin.build(data, lambda _: nn.ReLU())
        y = network(_inputs(data))
        expect(y.shape == (4, data.n_outputs), f"outputs of shape (4, {data.n_outputs})", tuple(y.shape), "end in data.n_outputs units")
        expect(bool(torch.isfinite(y).all()), "finite outputs", "NaN or infinity", "check the initialisation")


def names_its_prunable_modules(plugin: Model) -> None:
    """Names exist, are different, and belong to modules with a weight matrix."""
    network = _on_meta(plugin, _examples(plugin)[0])
    names = list(plugin.prunable(network))
    modules = dict(network.named_modules())
    expect(bool(names) and len(set(names)) == len(names), "one or more different names", names, "override prunable()")
    for name in names:
        weight = getattr(modules.get(name), "weight", None)
        got = "no such module" if name not in modules else f"{type(modules[name]).__name__}"
        expect(weight is not None and weight.dim() >= 2, f"a weight matrix at {name!r}", got, "leave norms and biases out of prunable()")


def narrows(plugin: Model) -> None:
    """``narrowed(1)`` is the same network; smaller factors have fewer parameters and the same depth."""
    data = _examples(plugin)[0]
    whole = _count(_on_meta(plugin, data))
    counts = [_count(_on_meta(plugin.narrowed(factor), data)) for factor in (1.0, 0.5, 0.1, 1e-9)]
    expect(counts[0] == whole, f"{whole} parameters at factor 1", counts[0], "round widths, do not truncate")
    expect(counts == sorted(counts, reverse=True) and counts[-1] > 0, "fewer parameters with a smaller factor", counts, "width at least 1")
    depth = len(plugin.prunable(_on_meta(plugin, data)))
    narrow = len(plugin.prunable(_on_meta(plugin.narrowed(0.1), data)))
    expect(narrow == depth, f"{depth} prunable modules when narrowed", narrow, "change widths only")


CHECKS = (builds_on_meta, maps_inputs_to_outputs, names_its_prunable_modules, narrows)
