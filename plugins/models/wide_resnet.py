"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146)."""

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field, field_validator
from sparsefleet_plugins.models.inputs import picture_shape
from torch import Tensor, nn

from sparsefleet import DataInfo, Model, hookimpl

_STEM = 16
_DEPTHS = range(10, 101, 6)


class Block(nn.Module):
    """Norm, activation and 3 x 3 convolution twice, added to the input; where the shape changes, a 1 x 1 convolution of the activated input."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float, act: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(n_in), act(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(n_out), act(n_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False) if stride > 1 or n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n_in, height, width)`` to ``(batch, n_out, height / stride, width / stride)``."""
        activated = self.act1(self.norm1(x))
        out: Tensor = self.conv2(self.dropout(self.act2(self.norm2(self.conv1(activated)))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(Model):
    """WRN-depth-width of arXiv 1605.07146, Table 1: three groups of (depth - 4) / 6 pre-activation blocks with 16, 32 and 64 times ``width`` channels.

    The default is WRN-22-2, the network of the CIFAR-10 figures of sparse training. Pictures of any size are averaged over what is left of them
    before the Linear layer.
    """

    name = "wide-resnet"
    paper = "arXiv 1605.07146, Table 1; pre-activation: arXiv 1603.05027, Fig. 4 (e)"
    rule = "x + conv(act(norm(conv(act(norm(x))))))"
    chain = ()
    kinds: ClassVar[tuple[str, ...]] = ("Conv2d", "Linear")

    depth: int = Field(
        22, json_schema_extra={"enum": list(_DEPTHS)}, description="weight layers, 6 n + 4; the 1 x 1 convolutions do not count"
    )
    width: float = Field(2.0, gt=0, le=100, description="channels of the groups over 16, 32 and 64 (the paper's k)")
    dropout: float = Field(0.0, ge=0, lt=1, description="between the convolutions of a block; the paper has 0 or 0.3 on CIFAR")

    @field_validator("depth")
    @classmethod
    def _is_a_depth(cls, depth: int) -> int:
        if depth not in _DEPTHS:
            raise ValueError(f"must be one of {', '.join(map(str, _DEPTHS))}, got {depth}")
        return depth

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, channels, height, width)`` to ``(batch, n_outputs)``."""
        channels, _, _ = picture_shape(self.name, data)
        parts: list[tuple[str, nn.Module]] = [("conv1", nn.Conv2d(channels, _STEM, 3, padding=1, bias=False))]
        n_in = _STEM
        for group in range(3):
            n_out = max(1, round(_STEM * 2**group * self.width))
            for i in range((self.depth - 4) // 6):
                stride = 2 if group and not i else 1
                parts.append((f"group{group + 1}_{i}", Block(n_in, n_out, stride, self.dropout, act)))
                n_in = n_out
        parts += [("norm", nn.BatchNorm2d(n_in)), ("act", act(n_in)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
        parts.append(("fc", nn.Linear(n_in, data.n_outputs)))
        return nn.Sequential(OrderedDict(parts))

    def narrowed(self, factor: float) -> "WideResNet":
        """``width`` times ``factor``; the first convolution keeps its 16 channels, as in every network of the family."""
        return self.model_copy(update={"width": self.width * factor})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [WideResNet]
