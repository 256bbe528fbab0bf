"""The small convolutional net of the notebook "Fun with Sparse PyTorch Models", slide 7."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, ClassVar

from pydantic import Field
from sparsefleet_plugins.models.inputs import after_two_poolings
from torch import nn

from sparsefleet import DataInfo, Model, hookimpl

_Width = Annotated[int, Field(ge=1)]


class SmallCnn(Model):
    """Two 3 x 3 convolutions without padding, to 32 and to 64 channels, each with 2 x 2 max pooling and then its activation, and one Linear layer.

    On 32 x 32 colour pictures the Linear layer has 64 x 6 x 6 inputs, as on the slide; it follows the size of the pictures.
    """

    name = "small-cnn"
    paper = "Fun with Sparse PyTorch Models via Hadamard Parametrization, slide 7"
    rule = "conv 3x3 -> 32, pool 2, act, conv 3x3 -> 64, pool 2, act, fc -> outputs"
    cannot = "Pictures smaller than 10 x 10: nothing is left of them."
    chain = ()
    kinds: ClassVar[tuple[str, ...]] = ("Conv2d", "Linear")

    channels: tuple[_Width, _Width] = Field((32, 64), description="channels of the convolutions")

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, channels, height, width)`` to ``(batch, n_outputs)``."""
        n_in, height, width = after_two_poolings(self.name, data, kernel=3)
        first, second = self.channels
        parts: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(n_in, first, 3)),
            ("pool1", nn.MaxPool2d(2)),
            ("act1", act(first)),
            ("conv2", nn.Conv2d(first, second, 3)),
            ("pool2", nn.MaxPool2d(2)),
            ("act2", act(second)),
            ("flatten", nn.Flatten()),
            ("fc", nn.Linear(second * height * width, data.n_outputs)),
        ]
        return nn.Sequential(OrderedDict(parts))

    def narrowed(self, factor: float) -> "SmallCnn":
        """Channels times ``factor``, rounded, at least 1."""
        first, second = (max(1, round(width * factor)) for width in self.channels)
        return self.model_copy(update={"channels": (first, second)})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [SmallCnn]
