"""The whole model as a function of its connections' weights, for pruners that score all layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from sparsefleet.connections import Connections
from sparsefleet.errors import PluginError
from sparsefleet.nn.module import SparseModule
from sparsefleet.plugin import Calibration, DataInfo, Pruner
from sparsefleet.trial.objective import loss_of


class NetworkCalibration(Calibration):
    """A calibration over a network whose sparse modules are stored dense (``masked``).

    Args:
        module: the network; its mode and its buffers are left as they were.
        sparse: its sparse modules.
        layers: their connections.
        batches: calibration batches.
    """

    def __init__(
        self,
        module: nn.Module,
        sparse: Mapping[str, SparseModule],
        layers: Mapping[str, Connections],
        batches: Sequence[tuple[Tensor, Tensor]],
        info: DataInfo,
    ) -> None:
        self.layers = layers
        self.batches = batches
        self.n_classes = info.n_outputs if info.task == "classification" else 0
        self._info = info
        self._module = module
        self._sparse = sparse
        self._names = {id(p): name for name, p in module.named_parameters()}

    def forward(self, weights: Mapping[str, Tensor], x: Tensor, *, magnitudes: bool = False, batch_statistics: bool = False) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else None  # token numbers say nothing of it
        replaced = {name: parameter.to(dtype or parameter.dtype) for name, parameter in self._module.named_parameters()}
        if magnitudes:
            replaced = {name: value.abs() for name, value in replaced.items()}
        for name, values in weights.items():
            module = self._sparse[name]
            parameter = module.weight_parameter
            if parameter.numel() == values.numel() and parameter.dim() == 1:
                stored = values
            else:
                stored = torch.zeros(parameter.numel(), dtype=values.dtype, device=values.device)
                stored = stored.index_put((module.flat_sites(),), values).view_as(parameter)
            replaced[self._names[id(parameter)]] = stored
        buffers = {
            name: buffer.to(dtype or buffer.dtype, copy=True) if buffer.is_floating_point() else buffer.clone()
            for name, buffer in self._module.named_buffers()
        }
        modes = [(part, part.training) for part in self._module.modules()]
        self._module.eval()
        for part, _ in modes:
            if batch_statistics and isinstance(part, _BatchNorm):
                part.training = True
        try:
            output: Tensor = functional_call(self._module, {**replaced, **buffers}, (x,))
        finally:
            for part, was_training in modes:
                part.training = was_training
        return output

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return loss_of(output, y, self._info)

    def input_norms(self) -> Mapping[str, Tensor]:
        squares: dict[str, Tensor] = {}
        handles = []
        for name, module in self._sparse.items():

            def add(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                squares[name] = squares.get(name, 0) + _square_sums(module, inputs[0].detach().double().square())

            handles.append(module.register_forward_pre_hook(add))
        try:
            with torch.no_grad():
                for x, _ in self.batches:
                    self.forward({}, x)
        finally:
            for handle in handles:
                handle.remove()
        for name in set(self.layers) - set(squares):
            raise PluginError(f"layer {name!r} is never called as a module, so it has no inputs to take a norm of")
        for name, total in squares.items():
            if total.numel() != self._sparse[name].matrix_shape[1]:
                raise PluginError(
                    f"layer {name!r} has no one input per weight column: {total.numel()} for {self._sparse[name].matrix_shape[1]}"
                )
        return {name: total.sqrt() for name, total in squares.items()}


def _square_sums(module: nn.Module, squared: Tensor) -> Tensor:
    """``(n_in,)`` sums of what every weight column sees: for a convolution, over the positions its kernel element visits."""
    conv = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if conv is None:
        return squared.flatten(0, -2).sum(0)
    if conv.groups != 1:
        raise PluginError("the inputs of a grouped convolution have no one norm per weight column")
    with torch.enable_grad():  # the derivative by a kernel element is the sum of its inputs
        kernel = squared.new_zeros((1, squared.shape[1], *conv.kernel_size), requires_grad=True)
        total = conv._conv_forward(squared, kernel, None).sum()
    return torch.autograd.grad(total, kernel)[0].reshape(-1)


def score_whole_model(pruner: Pruner, calibration: Calibration) -> dict[str, Tensor]:
    """``pruner.score_all`` with gradients enabled, detached."""
    with torch.enable_grad():
        scores = pruner.score_all(calibration)
    return {name: values.detach() for name, values in scores.items()}
