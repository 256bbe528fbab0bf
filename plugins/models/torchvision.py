"""Any classifier of torchvision by name, untrained, at any width."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from sparsefleet_plugins.models.inputs import picture_shape
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsefleet import DataInfo, Model, UserError, hookimpl


def _architectures() -> list[str]:
    """Names of torchvision's classifiers, read from its sources: to import it takes as long as to import torch, and plans need the names."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        raise ImportError("torchvision is not installed")
    registered = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    return sorted(name for path in (Path(found.origin).parent / "models").glob("*.py") for name in registered.findall(path.read_text()))


_NAMES = _architectures()
_SCALED = (nn.Conv2d, nn.Linear)
_BATCH = 2


class Torchvision(Model):
    """``torchvision.models.ARCHITECTURE`` with random weights, its last layer fitted to the outputs and its first convolution to the channels.

    Vision transformers are built for the size of the pictures, GoogLeNet and Inception without their second head. Convolutions and Linear
    layers start as everywhere in the product, uniform within 1 / sqrt(fan-in), all else as torchvision has it. The activations are the
    architecture's own.
    """

    name = "torchvision"
    paper = "torchvision.models; each architecture names its own"
    rule = "torchvision.models.get_model(architecture, weights=None, num_classes=outputs, **options)"
    cannot = (
        "Pretrained weights; another activation than the architecture's; another width where it has more than convolutions, Linear layers and "
        "batch norms (transformers, ConvNeXt) or grouped convolutions that the width does not divide, and so no small-dense there."
    )
    chain = ()
    kinds: ClassVar[tuple[str, ...]] = ("Conv2d", "Linear")

    architecture: str = Field("resnet18", json_schema_extra={"enum": _NAMES}, description="its name in torchvision")
    options: dict[str, bool | int | float | str] = Field({}, description="what else its function takes, e.g. width_per_group, image_size")
    width: float = Field(1.0, gt=0, le=16, description="every hidden width is multiplied by it and rounded")

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, architecture: str) -> str:
        if architecture not in _NAMES:
            raise ValueError(f"torchvision has no classifier {architecture!r}")
        return architecture

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, channels, height, width)`` to ``(batch, n_outputs)``.

        Raises:
            UserError: the architecture does not take these pictures, options or width, or the activation is not relu.
        """
        shape = picture_shape(self.name, data)
        if type(act(1)) is not nn.ReLU:
            raise UserError(f"torchvision's {self.architecture} has activations of its own", fix="leave activation out, or another model")
        make = functools.partial(self._plain, data)
        try:
            network = _on_this_device(make)
            _fit(network, shape, self.width)
            found = _run(network, shape).shape
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # whatever an architecture ends in
            told = "".join(f", {key} {value}" for key, value in {"width": self.width, **self.options}.items())
            raise UserError(
                f"torchvision's {self.architecture} does not take pictures of {shape[0]} x {shape[1]} x {shape[2]}{told}",
                cause=str(error).partition("\n")[0],
            ) from error
        if found != (_BATCH, data.n_outputs):
            raise UserError(f"torchvision's {self.architecture} has outputs of shape {tuple(found)}, wanted ({_BATCH}, {data.n_outputs})")
        _let_start(network, make)
        return network

    def narrowed(self, factor: float) -> Torchvision:
        """Every hidden width times ``factor``, rounded, at least 1; building it says where an architecture has no such form."""
        return self.model_copy(update={"width": self.width * factor})

    def _plain(self, data: DataInfo) -> nn.Module:
        own: dict[str, Any] = {}
        if self.architecture.startswith("vit_"):
            own["image_size"] = data.input_shape[1]
        elif self.architecture.startswith("maxvit"):
            own["input_size"] = data.input_shape[1:]
        elif self.architecture in ("googlenet", "inception_v3"):
            own |= {"aux_logits": False, "init_weights": False}
        with torch.device("cpu"):  # models are built under the meta device; nothing that an import makes may land there
            from torchvision.models import get_model
        made: nn.Module = get_model(self.architecture, weights=None, num_classes=data.n_outputs, **{**own, **self.options})
        return made


def _on_this_device(make: Callable[[], nn.Module]) -> nn.Module:
    """On the device of the surrounding context; RegNets compute their widths with tensors, which the meta device cannot."""
    try:
        return make()
    except NotImplementedError:
        with torch.device("cpu"):
            network = make()
        return network.to(torch.get_default_device())


def _run(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Outputs for black pictures, in eval mode."""
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad():
        out: Tensor = network(torch.zeros((_BATCH, *shape), device=device))
    network.train()
    return out


def _fit(network: nn.Module, shape: tuple[int, ...], width: float) -> None:
    """Makes the first convolution take ``shape[0]`` channels and every layer but the last ``width`` times as wide.

    Each layer's inputs are what it is given while the network runs, so whatever the architecture adds, joins and flattens keeps fitting.
    """
    layers = [module for module in network.modules() if isinstance(module, _SCALED)]
    first = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
    if width == 1 and first.in_channels == shape[0]:
        return
    if width != 1:
        _refuse_other_parts(network)

    def resize(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _resize(module, inputs[0].shape, 1.0 if module is layers[-1] else width)

    resizable = [module for module in network.modules() if isinstance(module, (*_SCALED, _BatchNorm))] if width != 1 else [first]
    handles = [module.register_forward_pre_hook(resize) for module in resizable]
    try:
        _run(network, shape)
    finally:
        for handle in handles:
            handle.remove()


def _refuse_other_parts(network: nn.Module) -> None:
    for module in network.modules():
        if list(module.parameters(recurse=False)) and not isinstance(module, (*_SCALED, _BatchNorm)):
            raise ValueError(f"a {type(module).__name__} has no other width")


def _resize(module: nn.Module, given: torch.Size, width: float) -> None:
    """Gives ``module`` the inputs of a tensor of shape ``given`` and ``width`` times as many outputs, and starts it anew.

    Raises:
        ValueError: a grouped convolution does not divide into its groups.
    """
    if isinstance(module, nn.Conv2d):
        n_in, n_out, groups = given[1], max(1, round(module.out_channels * width)), module.groups
        if groups == module.in_channels and groups > 1:  # depthwise
            groups, n_out = n_in, module.out_channels // module.in_channels * n_in
        if n_in % groups or n_out % groups:
            raise ValueError(f"a convolution of {groups} groups cannot lead from {n_in} to {n_out} channels")
        module.in_channels, module.out_channels, module.groups = n_in, n_out, groups
        shapes = {"weight": (n_out, n_in // groups, *module.kernel_size), "bias": (n_out,)}
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = given[-1], max(1, round(module.out_features * width))
        shapes = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    else:
        module.num_features = given[1]
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (given[1],))
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old is not None:
            new = old.new_empty(shape)
            setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    module.reset_parameters()


def _let_start(network: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Gives the parts that fill their tensors only when they are constructed a ``reset_parameters``: tables of positions, class tokens, scales."""
    started = _Started(make)
    for name, module in network.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not callable(getattr(module, "reset_parameters", None)):
            started.names.append(name)
            module.reset_parameters = functools.partial(started.fill, name, module)


class _Started:
    """Tensors of a network built on the CPU, made when the first of them is asked for and let go with the last."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._made: dict[str, list[Tensor]] = {}
        self.names: list[str] = []

    def fill(self, name: str, module: nn.Module) -> None:
        """Copies the tensors of the part ``name`` into ``module``."""
        if name not in self._made:
            with torch.device("cpu"):
                network = self._make()
            self._made = {part: _own(network.get_submodule(part)) for part in self.names}
        for tensor, value in zip(_own(module), self._made.pop(name), strict=True):
            tensor.copy_(value)


def _own(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))]


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [Torchvision]
