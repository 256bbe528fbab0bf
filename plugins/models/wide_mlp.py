"""The very wide net at the end of the notebook "SparseLinear Demonstration using MNIST": each input repeated, every layer as wide as the others,
the outputs of the last one summed by class."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from sparsefleet_plugins.models.inputs import n_numbers
from torch import Tensor, nn

from sparsefleet import DataInfo, Model, hookimpl


class InputScale(nn.Module):
    """``weight * x + bias``, one of each per input, learned; starts as the identity."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones and zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, features)`` to the same."""
        return torch.addcmul(self.bias, x, self.weight)


class Repeat(nn.Module):
    """Each input ``times`` times, the copies side by side."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n)`` to ``(batch, n * times)``."""
        return x.repeat_interleave(self.times, dim=1)


class GroupedSum(nn.Module):
    """Sums units k, k + groups, k + 2 groups … into output k."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n * groups)`` to ``(batch, groups)``."""
        return x.view(x.shape[0], -1, self.groups).sum(1)


class WideMlp(Model):
    """Repeated and scaled inputs, ``hidden`` layers with LayerNorm and activation, then a last layer without; Linear modules are ``fc1`` …

    With ``grouped-sum`` the last layer is as wide as the one before it (up to a multiple of the outputs) and its units are summed by class,
    so no unit is without a way to an output; with ``dense`` it has one unit per output, and ``keep_dense: [last]`` keeps it dense.
    """

    name = "wide-mlp"
    paper = "SparseLinear Demonstration using MNIST, section Training very wide and sparse models"
    rule = "repeat, scale, then fc, LayerNorm, act for every hidden width, then fc, summed by class"
    kinds: ClassVar[tuple[str, ...]] = ("Linear",)
    chain = ("input*repeat", "hidden", "hidden[-1]:readout=grouped-sum", "outputs:readout=dense")

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((1000, 1000), min_length=1, description="widths of the hidden layers")
    repeat: int = Field(1, ge=1, le=1000, description="how often each input is repeated")
    readout: Literal["grouped-sum", "dense"] = Field("grouped-sum", description="how the last layer becomes outputs")

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, *input_shape)`` to ``(batch, n_outputs)``."""
        n_in = n_numbers(self.name, data) * self.repeat
        parts: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten()), ("repeat", Repeat(self.repeat)), ("scale", InputScale(n_in))]
        widths = [n_in, *self.hidden]
        for i, (wide_in, wide_out) in enumerate(zip(widths, self.hidden, strict=False), start=1):
            parts += [(f"fc{i}", nn.Linear(wide_in, wide_out)), (f"norm{i}", nn.LayerNorm(wide_out)), (f"act{i}", act(wide_out))]
        per_class = -(-self.hidden[-1] // data.n_outputs) if self.readout == "grouped-sum" else 1
        parts.append((f"fc{len(widths)}", nn.Linear(widths[-1], per_class * data.n_outputs)))
        if self.readout == "grouped-sum":
            parts.append(("readout", GroupedSum(data.n_outputs)))
        return nn.Sequential(OrderedDict(parts))

    def narrowed(self, factor: float) -> "WideMlp":
        """Every hidden width times ``factor``, rounded, at least 1; the inputs stay repeated as they are."""
        return self.model_copy(update={"hidden": tuple(max(1, round(width * factor)) for width in self.hidden)})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [WideMlp]
