"""MLP-Mixer for small pictures: Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, arXiv 2105.01601."""

from collections import OrderedDict

from pydantic import Field
from sparsefleet import DataInfo, Model, UserError, hookimpl
from torch import nn


class Mix(nn.Module):
    """``x + fc2(act(fc1(norm(x))))`` along the patches (1) or the channels (2) of ``(batch, patches, channels)``."""

    def __init__(self, channels: int, along: int, n: int, hidden: int, act) -> None:
        super().__init__()
        self.along, self.norm = along, nn.LayerNorm(channels)
        self.fc1, self.act, self.fc2 = nn.Linear(n, hidden), act(hidden), nn.Linear(hidden, n)

    def forward(self, x):
        y = self.fc1(self.norm(x).transpose(self.along, 2))  # what is mixed comes last
        y = self.fc2(self.act(y.flatten(0, 1)).view_as(y))  # an activation sees (batch, features)
        return x + y.transpose(self.along, 2)


class Mixer(nn.Sequential):
    """Pictures to patches, patches to channels, blocks, and outputs from the mean over the patches."""

    def forward(self, x):
        x = self.blocks(self.embed(self.patches(x).transpose(1, 2)))
        return self.head(self.norm(x).mean(1))


class MixerModel(Model):
    """Mixes along the patches of a picture, then along their channels, with nothing but Linear layers."""

    name = "mixer"
    paper = "arXiv 2105.01601, section 2, Eq. 1"
    rule = "U = X + W2 act(W1 norm(X)) along patches, Y = U + W4 act(W3 norm(U)) along channels, depth times; norm, mean, Linear"
    cannot = "inputs that are no pictures; sides that are no multiples of patch; the paper's GELU, unless a plugin brings it (relu)."
    patch: int = Field(2, ge=1, le=64, description="pixels along a side of a patch")
    width: int = Field(32, ge=1, le=65536, description="channels of a patch (C)")
    depth: int = Field(2, ge=1, le=256, description="blocks, each mixing along patches and along channels")
    patch_hidden: int = Field(32, ge=1, le=65536, description="hidden units of mixing along patches (D_S)")
    channel_hidden: int = Field(128, ge=1, le=65536, description="hidden units of mixing along channels (D_C)")

    def build(self, data: DataInfo, act) -> Mixer:
        p, c = self.patch, self.width
        if len(data.input_shape) != 3 or any(side % p for side in data.input_shape[1:]):
            raise UserError(f"mixer: {data.input_shape} are no pictures that patches of {p} by {p} fill", fix="another patch")
        planes, high, wide = data.input_shape
        n = (high // p) * (wide // p)
        sizes = [(1, n, self.patch_hidden), (2, c, self.channel_hidden)] * self.depth
        parts = {"patches": nn.Unfold(p, stride=p), "embed": nn.Linear(planes * p * p, c)}
        parts["blocks"] = nn.Sequential(*(Mix(c, *size, act) for size in sizes))
        return Mixer(OrderedDict(parts, norm=nn.LayerNorm(c), head=nn.Linear(c, data.n_outputs)))

    def narrowed(self, factor: float) -> Model:
        widths = ("width", "patch_hidden", "channel_hidden")
        return self.model_copy(update={name: max(1, round(getattr(self, name) * factor)) for name in widths})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    return [MixerModel]
