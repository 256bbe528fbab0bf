"""The kit names each fault of models and data sets that are wrong as public ones are wrong."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from faults import assert_named, failed_checks
from pydantic import Field
from torch import nn

from sparsefleet import DataInfo, Dataset, Model, TensorData, UserError


class _Model(Model):
    """A right one of one hidden layer."""

    name = "wrong"
    hidden: int = Field(16, ge=1, description="width")

    def build(self, data, act):
        n_in = torch.Size(data.input_shape).numel()
        if data.vocabulary:
            raise UserError("no tokens")
        return nn.Sequential(nn.Flatten(), nn.Linear(n_in, self.hidden), act(self.hidden), nn.Linear(self.hidden, data.n_outputs))

    def narrowed(self, factor):
        return self.model_copy(update={"hidden": max(1, round(self.hidden * factor))})


class NamesNorms(_Model):  # whatever has a weight is called prunable
    def build(self, data, act):
        return nn.Sequential(*super().build(data, act), nn.LayerNorm(data.n_outputs))

    def prunable(self, network):
        return ["4"]


class Backwards(_Model):  # output to input
    def prunable(self, network):
        return ["3", "1"]


class NeverNarrow(_Model):  # leaves narrowed() out
    def narrowed(self, factor):
        return Model.narrowed(self, factor)


class TruncatesToNothing(_Model):  # int(width * factor) reaches 0
    def narrowed(self, factor):
        return self.model_copy(update={"hidden": int(self.hidden * factor)})


class Fractional(_Model):  # a width of 8.0 that JSON does not give back as a whole number
    def narrowed(self, factor):
        return self.model_copy(update={"hidden": max(1, round(self.hidden * factor)) + (0.5 if factor < 1e-3 else 0)})

    def build(self, data, act):
        return _Model(hidden=int(self.hidden)).build(data, act)


class OnTheCpu(_Model):  # a tensor with a device of its own
    def build(self, data, act):
        network = super().build(data, act)
        network.register_buffer("scale", torch.ones(1, device="cpu"))
        return network


class Seeds(_Model):  # torch.manual_seed in build: all that is drawn afterwards is always the same
    def build(self, data, act):
        torch.manual_seed(0)
        return super().build(data, act)


class _Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Noisy(_Model):  # noise in evaluation as well
    def build(self, data, act):
        return nn.Sequential(_Noise(), *super().build(data, act))

    def prunable(self, network):
        return ["2", "4"]


class _Squeeze(nn.Module):
    def forward(self, x):
        return x.squeeze()


class Squeezes(_Model):  # x.squeeze() takes a batch of one away
    def build(self, data, act):
        return nn.Sequential(*super().build(data, act), _Squeeze())


class _PlainScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.rand(()).item() if not torch.empty(0).is_meta else 1.0

    def forward(self, x):
        return x * self.scale


class DrawsAnAttribute(_Model):  # a random number outside of parameters and buffers: lost by a checkpoint
    def build(self, data, act):
        return nn.Sequential(*super().build(data, act), _PlainScale())


class WrongOutputs(_Model):  # always ten classes
    def build(self, data, act):
        n_in = torch.Size(data.input_shape).numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(n_in, self.hidden), act(self.hidden), nn.Linear(self.hidden, 10))


class OwnRelu(_Model):  # nn.ReLU() where the user may ask for k-winners
    def build(self, data, act):
        network = super().build(data, act)
        network[2] = nn.ReLU()
        return network


class OneForAll(_Model):  # self.act = act(hidden), called after every layer
    def build(self, data, act):
        first, second, between, last = super().build(data, act)
        return nn.Sequential(first, second, between, nn.Linear(self.hidden, self.hidden), between, last)


class OtherWidth(_Model):  # the width of the inputs given to the activation of the hidden units
    def build(self, data, act):
        network = super().build(data, act)
        network[2] = act(self.hidden + 1)
        return network


class Probabilities(_Model):  # softmax at the end, and cross entropy takes it again
    def build(self, data, act):
        return nn.Sequential(*super().build(data, act), nn.Softmax(1))


class _FilledOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(3))

    def reset_parameters(self):
        pass

    def forward(self, x):
        return x * self.scale.mean()


class FilledInInit(_Model):  # a buffer that only __init__ fills: on the meta device that is lost
    def build(self, data, act):
        return nn.Sequential(*super().build(data, act), _FilledOnce())


class _ExceptTheLast(nn.Sequential):
    def forward(self, x):
        for module in list(self)[:-1]:
            x = module(x)
        return x


class LeftOver(_Model):  # a layer that forward() does not call: it is pruned, and counted
    def build(self, data, act):
        return _ExceptTheLast(*super().build(data, act), nn.Linear(5, 5))


class _FirstChannel(nn.Module):
    def forward(self, x):
        return x * (torch.arange(x.shape[1]) == 0).view(1, -1, 1, 1)


class GreyAlone(_Model):  # written for one channel
    def build(self, data, act):
        return nn.Sequential(_FirstChannel(), *super().build(data, act))


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (NamesNorms, "names_its_prunable_modules", "LayerNorm"),
        (Backwards, "lists_prunable_modules_in_order", "1 first and 3 last"),
        (NeverNarrow, "narrows", "model_copy"),
        pytest.param(
            TruncatesToNothing, "stays_a_plugin_when_narrowed", "max(1", marks=pytest.mark.filterwarnings("ignore:Initializing zero")
        ),
        pytest.param(
            Fractional, "stays_a_plugin_when_narrowed", "whole numbers", marks=pytest.mark.filterwarnings("ignore:Pydantic serial")
        ),
        (OnTheCpu, "builds_on_meta", "name no device"),
        (Seeds, "builds_the_same_twice", "global generators"),
        (DrawsAnAttribute, "builds_the_same_twice", "buffers"),
        (Noisy, "evaluates_each_sample_by_itself", "two evaluations"),
        (Squeezes, "evaluates_each_sample_by_itself", "squeeze()"),
        (WrongOutputs, "maps_inputs_to_outputs", "data.n_outputs"),
        (OwnRelu, "uses_the_activation", "relu in its place"),
        (OneForAll, "uses_the_activation", "called 2 times"),
        (OtherWidth, "uses_the_activation", "act(16)"),
        (Probabilities, "maps_inputs_to_outputs", "cross entropy takes it again"),
        (FilledInInit, "fills_every_tensor", "scale (_FilledOnce)"),
        (LeftOver, "trains_every_parameter", "none at 4.weight"),
        (GreyAlone, "trains_every_parameter", "channel [1, 2]"),
    ],
)
def test_each_fault_of_models_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class _Data(Dataset):
    """A right one whose files are never there."""

    name = "wrong"
    info: ClassVar[DataInfo] = DataInfo("classification", (2,), 3)

    def files(self, root):
        raise UserError("no files", fix="get them")

    def load(self, root, split):
        return TensorData(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


class Careless(_Data):  # assumes that its files are there
    def files(self, root):
        return sorted(root.iterdir())


class Unhelpful(_Data):  # says that they are not there, and not how to get them
    def files(self, root):
        raise UserError("no files")


class Downloads(_Data):  # makes its folder while it looks
    def files(self, root):
        root.mkdir(parents=True)
        raise UserError("no files", fix="get them")


class OneExample(_Data):  # fake examples that are all the same
    def fake(self, n):
        return TensorData(torch.ones(n, 2), torch.arange(n) % 3)


class OneClass(_Data):  # all of class 0
    def fake(self, n):
        return TensorData(super().fake(n).x, torch.zeros(n, dtype=torch.int64))


class UnseededFake(_Data):  # other examples at every call
    def fake(self, n):
        return TensorData(torch.randn(n, 2), torch.arange(n) % 3)


class NumpyShape(_Data):  # shapes of numpy's integers, which json.dumps refuses
    info: ClassVar[DataInfo] = DataInfo("classification", (2,), np.int64(3))


class UnseededAugment(_Data):  # flips by the global generator
    def augment(self, x, rng):
        return torch.where(torch.rand(len(x), 1) < 0.5, -x, x)


class AugmentsInPlace(_Data):  # writes into the training set itself
    def augment(self, x, rng):
        return x.mul_(-1)


class FloatLabels(_Data):  # classes as floats, which cross entropy takes for probabilities
    def fake(self, n):
        return TensorData(super().fake(n).x, (torch.arange(n) % 3).float())


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (Careless, "explains_absent_files", "UserError"),
        (Unhelpful, "explains_absent_files", "fix"),
        (Downloads, "explains_absent_files", "look only"),
        (OneExample, "invents_any_number", "different examples"),
        (OneClass, "invents_any_number", "label"),
        (UnseededFake, "invents_examples", "generator of your own"),
        (FloatLabels, "invents_examples", "y.long()"),
        (NumpyShape, "tells_its_shapes", "whole numbers"),
        (UnseededAugment, "augments_by_its_stream_alone", "rng only"),
        (AugmentsInPlace, "augments_by_its_stream_alone", "clone()"),
    ],
)
def test_each_fault_of_data_sets_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class _OnDisk(_Data):
    """A right one whose files are there."""

    info: ClassVar[DataInfo] = DataInfo("classification", (4,), 3)

    def files(self, root):
        return [root / "examples.pt"]

    def load(self, root, split):
        x, y = torch.load(root / "examples.pt")
        return TensorData(x[:200], y[:200]) if split == "train" else TensorData(x[200:], y[200:])


class Leaks(_OnDisk):  # the training set is all there is
    def load(self, root, split):
        data, more = super().load(root, split), super().load(root, "test")
        return data if split == "test" else TensorData(torch.cat([data.x, more.x]), torch.cat([data.y, more.y]))


class StandardisesByTest(_OnDisk):  # fit_transform on the test set
    def load(self, root, split):
        data, test = super().load(root, split), super().load(root, "test")
        return TensorData((data.x - test.x.mean(0)) / test.x.std(0), data.y)


class ReadsMore(_OnDisk):  # a second file, which is not in the key of the trial
    def load(self, root, split):
        (root / "mean.txt").read_text()
        return super().load(root, split)


class OrdersByHash(_OnDisk):  # another order in every process
    def load(self, root, split):
        data = super().load(root, split)
        order = sorted(range(len(data.y)), key=lambda i: hash(str(i)))
        return TensorData(data.x[order], data.y[order])


class DoublePrecision(_OnDisk):  # numpy's float64, which no layer takes
    def load(self, root, split):
        data = super().load(root, split)
        return TensorData(data.x.double(), data.y)


class ShufflesExamples(_OnDisk):  # a permutation inside augment: labels stay behind
    def augment(self, x, rng):
        return x.flip(0)


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (Leaks, "keeps_its_splits_apart", "100% of them are"),
        (StandardisesByTest, "keeps_its_splits_apart", "of the training set"),
        (ReadsMore, "loads_what_it_says", "mean.txt"),
        (OrdersByHash, "loads_what_it_says", "hash()"),
        (DoublePrecision, "loads_what_it_says", "float32"),
        (ShufflesExamples, "augments_by_its_stream_alone", "labels do not move"),
        (_OnDisk, None, None),
    ],
)
def test_each_fault_of_loading_is_named(plugin, check, words, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEFLEET_DATA", str(tmp_path))
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    torch.save((3 * x + 1, torch.arange(300) % 3), tmp_path / "examples.pt")
    (tmp_path / "mean.txt").write_text("1")
    if check:
        assert_named(plugin(), check, words)
    else:
        assert set(failed_checks(plugin(), None)) <= {"explains_absent_files"}  # it assumes that its files are there


@pytest.mark.parametrize("plugin", [_Model, _Data])
def test_without_a_fault_nothing_fails(plugin):
    assert failed_checks(plugin(), None) == {}
