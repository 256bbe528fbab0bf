"""lenet-5, small-cnn, wide-resnet, sentiment-lstm: published sizes, and outputs against plain float64 formulas."""

import math

import pytest
import torch
from pydantic import ValidationError
from sparsefleet_plugins.models.lenet_5 import LeNet5
from sparsefleet_plugins.models.mlp import Mlp
from sparsefleet_plugins.models.sentiment_lstm import SentimentLstm
from sparsefleet_plugins.models.small_cnn import SmallCnn
from sparsefleet_plugins.models.wide_mlp import WideMlp
from sparsefleet_plugins.models.wide_resnet import Block, WideResNet
from torch import nn
from torch.nn import functional as F

from sparsefleet import DataInfo, Rng, UserError
from sparsefleet.registry import catalog

MNIST = DataInfo("classification", (1, 28, 28), 10)
CIFAR = DataInfo("classification", (3, 32, 32), 10)
SENTENCES = DataInfo("classification", (12,), 2, vocabulary=50)
PICTURE_MODELS = [LeNet5(), SmallCnn(), WideResNet()]


def relu(features):
    return nn.ReLU()


def net(plugin, data, act=relu):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return plugin.build(data, act).double()


def n_params(plugin, data):
    with torch.device("meta"):
        return sum(p.numel() for p in plugin.build(data, relu).parameters())


def pictures(*shape):
    return Rng("pictures").normal(math.prod(shape)).view(shape)


def sizes(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters() if p.dim() > 1}


# Sizes


def test_lenet_5_is_caffes_variant():
    """431k parameters (arXiv 1810.02340, Table 1); 20 and 50 maps, 50 x 4 x 4 inputs of the hidden layer (sparse_learning, LeNet_5_Caffe)."""
    found = sizes(net(LeNet5(), MNIST))
    assert found == {"conv1.weight": (20, 1, 5, 5), "conv2.weight": (50, 20, 5, 5), "fc3.weight": (500, 800), "fc4.weight": (10, 500)}
    assert n_params(LeNet5(), MNIST) == 431_080
    assert sizes(net(LeNet5(), CIFAR))["fc3.weight"] == (500, 50 * 5 * 5)


def test_small_cnn_is_the_slides():
    assert sizes(net(SmallCnn(), CIFAR)) == {"conv1.weight": (32, 3, 3, 3), "conv2.weight": (64, 32, 3, 3), "fc.weight": (10, 64 * 6 * 6)}
    assert sizes(net(SmallCnn(), MNIST))["fc.weight"] == (10, 64 * 5 * 5)


def test_the_mlp_of_lecture_3():
    assert n_params(Mlp(hidden=(512, 256, 128)), MNIST) == 567_434
    assert n_params(Mlp(), MNIST) == 266_610


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2), (28, 10, 36.5)],
)
def test_wide_resnets_have_their_published_sizes(depth, width, millions):
    """arXiv 1605.07146, Tables 4 and 5."""
    assert round(n_params(WideResNet(depth=depth, width=width), CIFAR) / 1e6, 1) == millions


def test_wrn_22_2_by_hand():
    total = 3 * 16 * 9
    n_in = 16
    for n_out in (32, 64, 128):
        for _ in range(3):
            total += 9 * n_in * n_out + 9 * n_out * n_out + 2 * n_in + 2 * n_out  # convolutions, gains and shifts
            total += n_in * n_out if n_in != n_out else 0
            n_in = n_out
    total += 2 * 128 + 128 * 10 + 10
    assert n_params(WideResNet(), CIFAR) == total == 1_079_642


def test_a_depth_is_6_n_plus_4():
    with pytest.raises(ValidationError, match="22, 28"):
        WideResNet(depth=23)
    ((path, message),) = catalog().complete("model", "wide-resnet", {"depth": 23})[1]
    assert path == "depth"
    assert "22, 28" in message


def test_the_source_lstms_sizes():
    """Slide 12: 10,000 words, 100 numbers each, 256 units, 2 outputs."""
    assert n_params(SentimentLstm(), DataInfo("classification", (64,), 2, vocabulary=10_000)) == 1_000_000 + 4 * 256 * (100 + 256 + 2) + 514


# Outputs


def test_lenet_5_equals_the_formula():
    module, x = net(LeNet5(), MNIST), pictures(3, 1, 28, 28)
    w = dict(module.named_parameters())
    h = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"]).clamp(min=0), 2)
    h = F.max_pool2d(F.conv2d(h, w["conv2.weight"], w["conv2.bias"]).clamp(min=0), 2)
    h = (h.flatten(1) @ w["fc3.weight"].T + w["fc3.bias"]).clamp(min=0)
    assert torch.allclose(module(x), h @ w["fc4.weight"].T + w["fc4.bias"], rtol=1e-12)


def test_small_cnn_equals_the_formula_with_raw_logits():
    module, x = net(SmallCnn(), CIFAR), pictures(3, 3, 32, 32)
    w = dict(module.named_parameters())
    h = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"]), 2).clamp(min=0)
    h = F.max_pool2d(F.conv2d(h, w["conv2.weight"], w["conv2.bias"]), 2).clamp(min=0)
    assert torch.allclose(module(x), h.flatten(1) @ w["fc.weight"].T + w["fc.bias"], rtol=1e-12)


@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2)])
def test_a_block_is_pre_activated(n_in, n_out, stride):
    """Norm and relu before both convolutions, nothing behind the sum; a changed shape is projected from the activated input."""
    block = Block(n_in, n_out, stride, 0.0, relu).double().eval()
    for norm in (block.norm1, block.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = pictures(2, n_in, 8, 8)

    def norm(h, module):
        mean, var = module.running_mean.view(-1, 1, 1), module.running_var.view(-1, 1, 1)
        return ((h - mean) / (var + 1e-5).sqrt()).clamp(min=0)

    first = norm(x, block.norm1)
    h = F.conv2d(first, block.conv1.weight, stride=stride, padding=1)
    h = F.conv2d(norm(h, block.norm2), block.conv2.weight, padding=1)
    h = h + (x if n_in == n_out else F.conv2d(first, block.shortcut.weight, stride=stride))
    assert torch.allclose(block(x), h, rtol=1e-10)


def test_wide_resnet_halves_its_pictures_twice():
    module, seen = net(WideResNet(depth=10, width=1), CIFAR), []
    for name in ("conv1", "group1_0", "group2_0", "group3_0", "norm"):
        module.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[1:])))
    module(pictures(2, 3, 32, 32))
    assert seen == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (64, 8, 8)]


def lstm_by_hand(module, words):
    """One sentence, one step after another, from the gates' definition."""
    w = {name.removeprefix("lstm."): p for name, p in module.named_parameters()}
    h = c = torch.zeros(module.lstm.hidden_size, dtype=torch.float64)
    for word in words:
        x = w["embedding.weight"][word]
        gates = w["weight_ih_l0"] @ x + w["bias_ih_l0"] + w["weight_hh_l0"] @ h + w["bias_hh_l0"]
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return w["fc.weight"] @ h + w["fc.bias"]


def test_the_lstm_reads_up_to_the_last_word():
    """The source's last state is one of padding."""
    module = net(SentimentLstm(embed_dim=3, hidden=5), SENTENCES)
    sentences = [[7, 3, 9], [4], list(range(2, 14)), [5, 1, 1, 8]]
    x = torch.zeros(4, 12, dtype=torch.int64)
    for row, words in zip(x, sentences, strict=True):
        row[: len(words)] = torch.tensor(words)
    wanted = torch.stack([lstm_by_hand(module, words) for words in sentences])
    assert torch.allclose(module(x), wanted, rtol=1e-10)
    assert torch.allclose(module(F.pad(x, (0, 30))), wanted, rtol=1e-10)  # more padding changes nothing
    assert torch.allclose(module(x[:1, :3]), wanted[:1], rtol=1e-10)


def test_an_empty_sentence_has_an_answer():
    module = net(SentimentLstm(embed_dim=3, hidden=5), SENTENCES)
    assert torch.allclose(module(torch.zeros(1, 12, dtype=torch.int64))[0], lstm_by_hand(module, [0]), rtol=1e-10)


def test_padding_is_never_trained():
    module = net(SentimentLstm(embed_dim=3, hidden=5), SENTENCES)
    module(torch.tensor([[4, 5] + 10 * [0]])).sum().backward()
    moved = module.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [4, 5]


def test_the_embedding_is_prunable_if_asked():
    module = net(SentimentLstm(), SENTENCES)
    assert "embedding" not in SentimentLstm().prunable(module)
    assert SentimentLstm(prune_embedding=True).prunable(module)[0] == "embedding"


# What they share


@pytest.mark.parametrize("plugin", [Mlp(), WideMlp(), *PICTURE_MODELS], ids=lambda p: p.name)
def test_models_of_numbers_refuse_tokens(plugin):
    with pytest.raises(UserError, match="takes numbers; the data set has tokens"):
        plugin.build(SENTENCES, relu)


@pytest.mark.parametrize("plugin", PICTURE_MODELS, ids=lambda p: p.name)
def test_models_of_pictures_refuse_rows(plugin):
    with pytest.raises(UserError, match="takes pictures"):
        plugin.build(DataInfo("classification", (20,), 2), relu)


@pytest.mark.parametrize(("plugin", "least"), [(LeNet5(), 16), (SmallCnn(), 10)])
def test_the_smallest_picture(plugin, least):
    module = net(plugin, DataInfo("classification", (1, least, least), 2))
    assert module(pictures(2, 1, least, least)).shape == (2, 2)
    with pytest.raises(UserError, match=f"from {least} x {least} on"):
        plugin.build(DataInfo("classification", (1, least - 1, least), 2), relu)


def test_sentences_are_all_that_an_lstm_reads():
    with pytest.raises(UserError, match="sentences of tokens"):
        SentimentLstm().build(MNIST, relu)


@pytest.mark.parametrize(
    ("plugin", "features"),
    [(LeNet5(), [20, 50, 500]), (SmallCnn(), [32, 64]), (WideResNet(depth=10, width=1), [16, 16, 16, 32, 32, 64, 64])],
)
def test_every_hidden_activation_is_the_chosen_one(plugin, features):
    made = []
    net(plugin, CIFAR, lambda n: made.append(n) or nn.ReLU())
    assert made == features


def test_narrowed_widths():
    assert LeNet5().narrowed(0.5) == LeNet5(maps=(10, 25), hidden=250)
    assert SmallCnn().narrowed(0.01) == SmallCnn(channels=(1, 1))
    assert SentimentLstm().narrowed(0.25) == SentimentLstm(embed_dim=25, hidden=64)
    assert WideResNet().narrowed(0.5) == WideResNet(width=1.0)


def test_kinds_are_what_is_prunable():
    for plugin in [*PICTURE_MODELS, Mlp(), WideMlp()]:
        module = net(plugin, CIFAR)
        assert {type(module.get_submodule(name)).__name__ for name in plugin.prunable(module)} == set(plugin.kinds)
