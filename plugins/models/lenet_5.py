"""LeNet-5 as the pruning literature has it: Caffe's variant, with 20 and 50 feature maps and 500 hidden units."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, ClassVar

from pydantic import Field
from sparsefleet_plugins.models.inputs import after_two_poolings
from torch import nn

from sparsefleet import DataInfo, Model, hookimpl

_Width = Annotated[int, Field(ge=1)]


class LeNet5(Model):
    """Two 5 x 5 convolutions without padding, each with its activation and 2 x 2 max pooling, then a hidden layer: 431,080 parameters on 28 x 28 grey pictures.

    It is the LeNet-5-Caffe of SNIP (arXiv 1810.02340) and sparse momentum (arXiv 1907.04840), not LeCun's net of 1998, which has 6 and 16
    maps and 61,706 parameters. Caffe's own has no activation behind its convolutions; the literature's has.
    """

    name = "lenet-5"
    paper = "arXiv 1907.04840, section 4 (LeNet-5 Caffe); doi:10.1109/5.726791"
    rule = "conv 5x5 -> 20, act, pool 2, conv 5x5 -> 50, act, pool 2, fc -> 500, act, fc -> outputs"
    cannot = "Pictures smaller than 16 x 16: nothing is left of them."
    chain = ()
    kinds: ClassVar[tuple[str, ...]] = ("Conv2d", "Linear")

    maps: tuple[_Width, _Width] = Field((20, 50), description="feature maps of the convolutions")
    hidden: int = Field(500, ge=1, description="units of the hidden layer")

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, channels, height, width)`` to ``(batch, n_outputs)``."""
        channels, height, width = after_two_poolings(self.name, data, kernel=5)
        first, second = self.maps
        parts: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(channels, first, 5)),
            ("act1", act(first)),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(first, second, 5)),
            ("act2", act(second)),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc3", nn.Linear(second * height * width, self.hidden)),
            ("act3", act(self.hidden)),
            ("fc4", nn.Linear(self.hidden, data.n_outputs)),
        ]
        return nn.Sequential(OrderedDict(parts))

    def narrowed(self, factor: float) -> "LeNet5":
        """Maps and hidden units times ``factor``, rounded, at least 1."""
        first, second, hidden = (max(1, round(width * factor)) for width in (*self.maps, self.hidden))
        return self.model_copy(update={"maps": (first, second), "hidden": hidden})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [LeNet5]
