"""The conformance kit, the paper's equation in its own matrix form, and its table of sizes."""

import pytest
import torch
from sparsefleet import DataInfo, UserError
from sparsefleet.testing import conformance
from torch import nn

from sf_mixer import MixerModel


@conformance(MixerModel(), MixerModel(patch=4, width=8, depth=1, patch_hidden=3, channel_hidden=5))
def test_conforms(check):
    check()


def relu(features):
    return nn.ReLU()


def normed(x, norm):  # (patches, channels): over the channels of each patch
    x = x - x.mean(1, keepdim=True)
    return x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_it_is_equation_1():
    torch.manual_seed(0)
    model = MixerModel(width=5, depth=1, patch_hidden=3, channel_hidden=7).build(DataInfo("classification", (3, 4, 6), 2), relu).double()
    for tensor in model.parameters():
        nn.init.normal_(tensor)
    picture = torch.randn(3, 4, 6, dtype=torch.float64)
    patches = [picture[:, i : i + 2, j : j + 2].reshape(-1) for i in (0, 2) for j in (0, 2, 4)]
    x = torch.stack([model.embed.weight @ patch + model.embed.bias for patch in patches])  # 6 patches of 5 channels
    s, c = model.blocks
    u = x + s.fc2.weight @ (s.fc1.weight @ normed(x, s.norm) + s.fc1.bias[:, None]).relu() + s.fc2.bias[:, None]  # from the left
    y = u + (normed(u, c.norm) @ c.fc1.weight.T + c.fc1.bias).relu() @ c.fc2.weight.T + c.fc2.bias  # from the right
    want = model.head.weight @ normed(y, model.norm).mean(0) + model.head.bias
    torch.testing.assert_close(model(picture[None])[0], want, rtol=1e-12, atol=1e-12)


S = {"width": 512, "depth": 8, "patch_hidden": 256, "channel_hidden": 2048}
B = {"width": 768, "depth": 12, "patch_hidden": 384, "channel_hidden": 3072}


@pytest.mark.parametrize(("sizes", "patch", "millions"), [(S, 32, 19), (S, 16, 18), (B, 32, 60), (B, 16, 59)])
def test_it_has_the_parameters_of_table_1(sizes, patch, millions):  # which leaves out the head
    with torch.device("meta"):
        model = MixerModel(patch=patch, **sizes).build(DataInfo("classification", (3, 224, 224), 1000), relu)
    assert round(sum(p.numel() for name, p in model.named_parameters() if "head" not in name) / 1e6) == millions


@pytest.mark.parametrize("shape", [(20,), (1, 8, 9)])
def test_what_it_cannot_cut_into_patches_is_refused(shape):
    with pytest.raises(UserError, match="patches of 2 by 2"):
        MixerModel().build(DataInfo("classification", shape, 2), relu)
