"""Activation sparsity as it is: how many activations are zero on a batch, and how many multiply-adds meet a zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sparsefleet.nn.layer_norm import LayerNorm
from sparsefleet.nn.module import SparseModule

ZEROS = "activation_zeros"
SAVED = "multiply_adds_saved"


def active_figures(network: nn.Module, x: Tensor, kind: type[nn.Module]) -> dict[str, float]:
    """What the activations of ``network`` leave at zero on the batch ``x``, in eval mode.

    A multiply-add is a connection at a place of a sample: of a Linear layer every connection in every row of its input, of a convolution every
    connection of every output whose kernel element lies on the picture and not on its padding. It is saved where its input is exactly zero. Only
    layers that run after an activation count, and of those what they really receive, so that pooling, dropout and flattening between are
    accounted for. The products inside ``nn.LSTM``, ``nn.GRU`` and ``nn.MultiheadAttention`` are not layers of their own and do not count.

    Args:
        x: ``(batch, *input_shape)``.
        kind: the type of module that the activation plugin builds.

    Returns:
        ``activation_zeros/NAME``: share of zeros in the output of each activation module; ``multiply_adds_saved/NAME``: share of saved
        multiply-adds of each layer; ``multiply_adds_saved``: the same over all of these layers. Empty without activations.
    """
    counts = _Counts()
    with _as_it_was(network), torch.no_grad():
        handles = [counts.watch(name, module) for name, module in _activations(network, kind).items()]
        handles += [counts.watch_layer(name, module) for name, module in _layers(network).items()]
        try:
            network(x)
        finally:
            for handle in handles:
                handle.remove()
    return counts.shares()


class _Counts:
    """Zeros and multiply-adds of one forward pass; a module that runs several times is summed up."""

    def __init__(self) -> None:
        self._zeros: dict[str, list[int]] = {}
        self._saved: dict[str, list[int]] = {}

    def watch(self, name: str, module: nn.Module) -> RemovableHandle:
        """Counts the zeros of what an activation returns."""

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            _add(self._zeros, name, int((output == 0).sum()), output.numel())

        return module.register_forward_hook(after)

    def watch_layer(self, name: str, module: nn.Module) -> RemovableHandle:
        """Counts the multiply-adds of a layer."""

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self._zeros and inputs[0].is_floating_point():
                _add(self._saved, name, *multiply_adds(module, inputs[0]))

        return module.register_forward_pre_hook(before)

    def shares(self) -> dict[str, float]:
        """The figures."""
        found = {f"{ZEROS}/{name}": part / whole for name, (part, whole) in self._zeros.items() if whole}
        found |= {f"{SAVED}/{name}": part / whole for name, (part, whole) in self._saved.items() if whole}
        saved, total = (sum(counts[i] for counts in self._saved.values()) for i in (0, 1))
        return {**found, SAVED: saved / total} if total else found


def multiply_adds(layer: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-adds of ``layer`` whose input in ``x`` is zero, and all of them.

    Args:
        layer: a Linear, a Conv2d, or a sparse module that stands for one.
        x: what it receives.
    """
    zero = x == 0
    conv = _convolution(layer)
    if conv is None:
        fan_out = _fan_out(layer)  # (n_in,)
        places = x.numel() // x.shape[-1]
        return int((zero.reshape(-1, x.shape[-1]).sum(0) * fan_out).sum()), places * int(fan_out.sum())
    per_element = _per_element(layer, conv)

    def connections(pictures: Tensor) -> int:
        """Connections that meet a one; float64 counts exactly up to 2**53."""
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(pictures.double(), conv._reversed_padding_repeated_twice, mode=mode)
        return int(F.conv2d(padded, per_element, None, conv.stride, 0, conv.dilation, conv.groups).sum().round())

    return connections(zero), connections(torch.ones_like(zero))


def _convolution(layer: nn.Module) -> nn.Conv2d | None:
    return next((part for part in layer.modules() if isinstance(part, nn.Conv2d)), None)


def _fan_out(layer: nn.Module) -> Tensor:
    """``(n_in,)`` int64 connections of every column of the weight."""
    if isinstance(layer, SparseModule):
        (_, n_in), flat = layer.matrix_shape, layer.flat_sites()
        return torch.bincount(flat % n_in, minlength=n_in)
    weight: Tensor = layer.get_parameter("weight")
    return torch.full((weight[0].numel(),), weight.shape[0], device=weight.device)


def _per_element(layer: nn.Module, conv: nn.Conv2d) -> Tensor:
    """``(groups, in / groups, height, width)`` float64: connections of every kernel element, over the outputs of its group."""
    groups, n_in = conv.groups, conv.in_channels // conv.groups
    size = n_in * conv.kernel_size[0] * conv.kernel_size[1]
    if isinstance(layer, SparseModule):
        flat = layer.flat_sites()
        group = (flat // size) // (conv.out_channels // groups)
        counts = torch.bincount(group * size + flat % size, minlength=groups * size)
    else:
        counts = torch.full((groups * size,), conv.out_channels // groups, device=conv.weight.device)
    return counts.double().view(groups, n_in, *conv.kernel_size)


def _activations(network: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """Activation modules by name; a ReLU that was fused into the norm before it is found by the Identity that stands in its place."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, kind)}
    for prefix, parent in network.named_modules():
        if isinstance(parent, nn.Sequential) and issubclass(nn.ReLU, kind):
            children = list(parent.named_children())
            for (_, norm), (name, behind) in pairwise(children):
                if isinstance(norm, LayerNorm) and norm.relu and isinstance(behind, nn.Identity):
                    found[f"{prefix}.{name}" if prefix else name] = behind
    return found


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Linear layers, convolutions, and the sparse modules that stand for them; not what is inside a sparse module."""
    sparse = {name: module for name, module in network.named_modules() if isinstance(module, SparseModule)}
    inside = {id(part) for module in sparse.values() for part in module.modules()}
    plain = {
        name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module) not in inside
    }
    return {**sparse, **plain}


def _add(counts: dict[str, list[int]], name: str, part: int, whole: int) -> None:
    known = counts.setdefault(name, [0, 0])
    counts[name] = [known[0] + part, known[1] + whole]


@contextmanager
def _as_it_was(network: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
