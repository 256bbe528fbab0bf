"""What one forward pass or training step of a network must compute and move, counted from its connections by us.

torch's FLOP counter takes CSR for dense and COO for nothing. What counts here: the products with the weights of Linear, Conv and sparse
layers, their values and indices at their real width, their input and output activations, and the optimizer's traffic for every parameter.
Left out: biases' additions, normalisations, activation functions, pooling, the loss, and whatever a model computes outside of those modules.
A compiler can fuse all of that away, so a limit must not hold it against anyone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.errors import UserError
from sparsefleet.measure.work import Cost, LayerCost, Op, Work
from sparsefleet.nn.module import SparseModule
from sparsefleet.sparsity.bytes import resident_bytes
from sparsefleet.trial.spec import Optimizer, Sgd

_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32)

OPTIMIZER_VALUES = {"sgd": 3, "sgd-momentum": 5, "adam": 7, "adamw": 7, "rmsprop": 5, "rmsprop-momentum": 7}
"""Values that a step reads or writes for each parameter: weight and slots both ways, the gradient once. fp32: 20 bytes SGD-momentum, 28 Adam."""


@dataclass
class _Seen:
    """What the forward pass showed of one module."""

    rows: int = 0
    input_elements: int = 0
    output_elements: int = 0
    input_width: int = 0
    output_width: int = 0
    needs_input_grad: bool = False


def optimizer_kind(optimizer: Optimizer) -> str:
    """The key of ``OPTIMIZER_VALUES`` for a spec's optimizer."""
    momentum = getattr(optimizer, "momentum", 0.0)
    if isinstance(optimizer, Sgd):
        return "sgd-momentum" if momentum else "sgd"
    return f"{optimizer.kind}-momentum" if momentum else optimizer.kind


def cost(network: nn.Module, batch: Any, op: Op, optimizer_kind: str, precision: str) -> Cost:
    """What ``op`` of ``network`` on ``batch`` computes and moves; watches one forward pass in eval mode and leaves the network as it was.

    A storage that holds every site and no index (``masked``) multiplies every site, so it counts as dense.

    Args:
        batch: ``x`` or ``(x, y)``; its size is part of the answer.
        optimizer_kind: a key of ``OPTIMIZER_VALUES``; of no effect for a forward pass.
        precision: of the trial; ``bf16`` watches under autocast.

    Raises:
        UserError: the optimizer is not known.
    """
    if optimizer_kind not in OPTIMIZER_VALUES:
        raise UserError(f"optimizer {optimizer_kind!r} is not counted", fix=f"known: {', '.join(OPTIMIZER_VALUES)}")
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    modules = dict(_layers(network))
    stored = sum(resident_bytes(network).values())
    held = {name: _stored(module) for name, module in modules.items()}  # now: asking a module for its nnz may make it cache an index
    seen = _watch(network, modules, x, precision)
    layers = tuple(_layer_cost(name, modules[name], seen[name], held[name], op) for name in modules if name in seen)
    sparse = [module for module in modules.values() if isinstance(module, SparseModule)]
    per_value = OPTIMIZER_VALUES[optimizer_kind]
    moved = _optimizer_bytes(network, per_value) if op == "step" else 0
    params_dense = sum(p.numel() for p in network.parameters()) + sum(_sites(m) - m.weight_parameter.numel() for m in sparse)
    return Cost(
        op=op,
        precision=precision,
        layers=layers,
        params=params_dense - sum(_sites(module) - module.nnz for module in sparse),
        params_dense=params_dense,
        stored_bytes=stored,
        dense_bytes=stored - sum(held[n] - _dense_bytes(m) for n, m in modules.items() if isinstance(m, SparseModule)),
        optimizer_bytes=moved,
        working_set=sum(layer.works[0].weight_bytes for layer in layers) + moved * (per_value - 1) // (2 * per_value),
    )


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers with counted weights; a sparse module is one layer, whatever it is made of."""
    if isinstance(module, (SparseModule, *_DENSE)):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _layers(child, f"{prefix}.{name}" if prefix else name)


def _optimizer_bytes(network: nn.Module, per_value: int) -> int:
    return sum(per_value * p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def _watch(network: nn.Module, modules: dict[str, nn.Module], x: Tensor, precision: str) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        found, (first, *_) = seen.setdefault(name, _Seen()), inputs
        n_out = _matrix(modules[name])[0]
        found.rows += output.numel() // n_out if n_out else 0
        found.input_elements += first.numel()
        found.output_elements += output.numel()
        found.input_width, found.output_width = first.element_size(), output.element_size()
        found.needs_input_grad |= first.requires_grad

    hooks = [
        module.register_forward_hook(lambda _m, inputs, output, name=name: note(name, inputs, output)) for name, module in modules.items()
    ]
    try:
        with _eval_mode(network), torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Dropout and batch statistics stay untouched; every module's own mode comes back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _layer_cost(name: str, module: nn.Module, seen: _Seen, stored_bytes: int, op: Op) -> LayerCost:
    n_out, n_in = _matrix(module)
    sites = n_out * n_in
    if isinstance(module, SparseModule):
        nnz, execution, kernel = module.nnz, module.execution, module.kernel
        works = _sparse_works(module, nnz, seen) if _gathers(module) else _dense_works(module, sites, seen)
    else:
        nnz, execution, kernel = sites, "dense", _weight(module)[0, 0].numel()
        works = _dense_works(module, sites, seen)
    return LayerCost(
        name=name,
        execution=execution,
        shape=(n_out, n_in),
        rows=seen.rows,
        nnz=nnz,
        sites=sites,
        stored_bytes=stored_bytes,
        dense_bytes=sites * _parameter(module).element_size(),
        kernel=kernel,
        works=tuple(works if op == "step" else works[:1]),
    )


def _gathers(module: SparseModule) -> bool:
    """Whether the storage finds its activations by index; one that holds every site and no index multiplies them all."""
    return module.weight_parameter.numel() < _sites(module) or any(b.dtype in _INTEGERS for b in module.buffers())


def _dense_works(module: nn.Module, sites: int, seen: _Seen) -> list[Work]:
    flops = 2 * sites * seen.rows
    x, y = seen.input_elements * seen.input_width, seen.output_elements * seen.output_width
    width = _parameter(module).element_size()
    mask = resident_bytes(module)["masks"]
    works = [Work("forward", flops, sites * width + mask, x + y)]
    if seen.needs_input_grad:
        works.append(Work("grad_input", flops, sites * width + mask, x + y))
    return [*works, Work("grad_weight", flops, sites * width, x + y)]


def _sparse_works(module: SparseModule, nnz: int, seen: _Seen) -> list[Work]:
    """The forward pass, and one fused backward pass that gathers once for both gradients."""
    flops = 2 * nnz * seen.rows
    x, y = seen.input_elements * seen.input_width, seen.output_elements * seen.output_width
    values = module.weight_parameter.numel() * module.weight_parameter.element_size()
    index = _index_bytes(module)
    forward = Work("forward", flops, values + index, x + y, nnz, seen.rows * seen.input_width, x)
    passes = 2 if seen.needs_input_grad else 1
    weight_bytes = passes * values + index  # values are read for the input's gradient only; their gradient is always written
    backward = Work("backward", passes * flops, weight_bytes, passes * x + y, nnz, seen.rows * seen.output_width, y)
    return [forward, backward]


def _index_bytes(module: SparseModule) -> int:
    """Bytes of indices that one pass must read: the narrowest array with one entry a value and the row pointer; where no array looks
    like that, all the indices that the module holds."""
    n_values, (n_out, _) = module.weight_parameter.numel(), module.matrix_shape
    integers = [buffer for buffer in module.buffers() if buffer.dtype in _INTEGERS]
    columns = [t.numel() * t.element_size() for t in integers if t.numel() == n_values]
    pointers = [t.numel() * t.element_size() for t in integers if t.numel() == n_out + 1]
    if not columns:
        return resident_bytes(module)["indices"]
    return min(columns) + min(pointers, default=0)


def _stored(module: nn.Module) -> int:
    by_role = resident_bytes(module)
    return by_role["values"] + by_role["indices"] + by_role["masks"]


def _dense_bytes(module: SparseModule) -> int:
    return _sites(module) * module.weight_parameter.element_size()


def _sites(module: SparseModule) -> int:
    return module.matrix_shape[0] * module.matrix_shape[1]


def _matrix(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, SparseModule):
        return module.matrix_shape
    weight = _weight(module)
    return weight.shape[0], weight[0].numel()


def _parameter(module: nn.Module) -> Tensor:
    return module.weight_parameter if isinstance(module, SparseModule) else _weight(module)


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight
