"""A multi-layer perceptron: Linear layers with an optional norm before each activation."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from sparsefleet_plugins.models.inputs import n_numbers
from torch import nn

from sparsefleet import DataInfo, Model, hookimpl

_NORM: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class Mlp(Model):
    """Flattens its input; Linear modules are ``fc1``, ``fc2`` … whatever stands between them.

    The default is LeNet-300-100, 266,610 parameters on MNIST; ``hidden: [512, 256, 128]`` is the net of "Lecture 3: Pruning & Sparsity - Complete
    Demo", part 1, with 567,434.
    """

    name = "mlp"
    paper = "arXiv 1803.03635, section 2 (LeNet-300-100)"
    rule = "fc, norm, act for every hidden width, then fc"
    kinds: ClassVar[tuple[str, ...]] = ("Linear",)

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((300, 100), min_length=1, description="widths of the hidden layers")
    norm: Literal["none", "layer", "batch"] = Field("none", description="normalisation between a hidden Linear and its activation")

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, *input_shape)`` to ``(batch, n_outputs)``."""
        parts: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        widths = [n_numbers(self.name, data), *self.hidden]
        for i, (n_in, n_out) in enumerate(zip(widths, self.hidden, strict=False), start=1):
            parts.append((f"fc{i}", nn.Linear(n_in, n_out)))
            if self.norm != "none":
                parts.append((f"norm{i}", _NORM[self.norm](n_out)))
            parts.append((f"act{i}", act(n_out)))
        parts.append((f"fc{len(widths)}", nn.Linear(widths[-1], data.n_outputs)))
        return nn.Sequential(OrderedDict(parts))

    def narrowed(self, factor: float) -> "Mlp":
        """Every hidden width times ``factor``, rounded, at least 1."""
        return self.model_copy(update={"hidden": tuple(max(1, round(width * factor)) for width in self.hidden)})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [Mlp]
