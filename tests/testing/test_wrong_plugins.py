"""The kit fails plugins that are wrong in the ways that public implementations are wrong."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field
from sparsefleet_plugins.layers.block import Block, BlockLinear
from sparsefleet_plugins.layers.csr import Csr, CsrLinear
from sparsefleet_plugins.pruning.magnitude import Magnitude
from torch import nn

from sparsefleet import Activation, Connectivity, DataInfo, Dataset, Model, Pruner, Rewirer, TensorData, Update, keep_best
from sparsefleet.testing import check, conformance


def names(problems):
    """The checks that failed."""
    return [problem.split(": ")[1] for problem in problems]


class _Pruner(Pruner):
    """Wrong in one way."""

    name = "wrong"


class _Rewirer(Rewirer):
    """Wrong in one way."""

    name = "wrong"


class Densifying(_Pruner):
    def score(self, conn):
        dense = torch.zeros(conn.shape, dtype=conn.weight.dtype)
        dense[conn.row, conn.col] = conn.weight
        return dense[conn.row, conn.col].abs()


class DensifyingInNumpy(_Pruner):
    def score(self, conn):
        dense = np.zeros(conn.shape)
        dense[conn.row, conn.col] = conn.weight
        return torch.from_numpy(dense[conn.row, conn.col]).abs()


class Mutating(_Pruner):
    def score(self, conn):
        return conn.weight.abs_()


class Unseeded(_Pruner):
    def score(self, conn):
        return torch.rand(conn.nnz)


class Positional(_Pruner):
    def score(self, conn):
        return conn.weight.abs() + 0.1 * conn.row


class NotANumber(_Pruner):
    def score(self, conn):
        return conn.weight / conn.weight.abs()


class Threshold(_Pruner):
    """A mask is no score: everything ties."""

    def score(self, conn):
        return conn.weight.abs() > 0.5


@pytest.mark.parametrize(
    ("plugin", "found"),
    [
        (Densifying, "allocates_by_connections"),
        (DensifyingInNumpy, "allocates_by_connections"),
        (Mutating, "leaves_its_input_alone"),
        (Unseeded, "is_deterministic"),
        (Positional, "does_not_depend_on_order"),
        (NotANumber, "gives_one_score_per_connection"),
        (Threshold, "gives_one_score_per_connection"),
    ],
)
def test_wrong_pruners(plugin, found):
    assert found in names(check(plugin()))


class OffByOne(_Rewirer):
    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        keep = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        return Update(keep, conn.select(keep).random_absent(max(0, n_drop - 1), rng))


class ThresholdingTies(_Rewirer):
    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        cut = conn.weight.abs().sort().values[n_drop] if n_drop < conn.nnz else torch.inf
        keep = conn.weight.abs() > cut
        return Update(keep, conn.select(keep).random_absent(n_drop, rng))


class GrowsOnTheKept(_Rewirer):
    def grow(self, conn, k, rng):
        return torch.stack([conn.row[:k], conn.col[:k]])


class MutatingUpdate(_Rewirer):
    def drop_score(self, conn):
        return conn.weight.abs_()


class UnseededGrowth(_Rewirer):
    def grow(self, conn, k, rng):
        ranks = torch.randperm(conn.n_sites)
        flat = ranks[~torch.isin(ranks, conn.flat)][:k]
        return torch.stack([flat // conn.n_in, flat % conn.n_in])


class DenseMask(_Rewirer):
    def grow(self, conn, k, rng):
        mask = torch.zeros(conn.n_sites, dtype=torch.bool)
        mask[conn.flat] = True
        flat = torch.nonzero(~mask).flatten()[:k]
        return torch.stack([flat // conn.n_in, flat % conn.n_in])


class ForgetsGrownState(_Rewirer):
    def initial_state(self, conn):
        return {"age": torch.zeros(60)}


class DueBeforeTheStart(_Rewirer):
    def due(self, progress):
        return True


class Inflating(_Rewirer):
    redistributes = True

    def redistribute(self, layers, progress):
        return {name: min(conn.n_sites, conn.nnz + 1) for name, conn in layers.items()}


class UndeclaredMoves(_Rewirer):
    def redistribute(self, layers, progress):
        return {name: conn.nnz for name, conn in layers.items()}


@pytest.mark.parametrize(
    ("plugin", "found"),
    [
        (OffByOne, "keeps_the_count"),
        (Inflating, "keeps_the_total"),
        (UndeclaredMoves, "keeps_the_total"),
        (ThresholdingTies, "keeps_the_count"),
        (GrowsOnTheKept, "grows_at_absent_sites"),
        (MutatingUpdate, "leaves_its_input_alone"),
        (UnseededGrowth, "is_deterministic"),
        (DenseMask, "allocates_by_connections"),
        (ForgetsGrownState, "starts_grown_connections"),
        (DueBeforeTheStart, "is_due_by_the_clock"),
    ],
)
def test_wrong_rewirers(plugin, found):
    assert found in names(check(plugin()))


class Bernoulli(Connectivity):
    """Draws each site with a probability, so the count drifts."""

    name = "wrong"

    def draw(self, shape, nnz, rng):
        n_sites = shape[0] * shape[1]
        flat = torch.nonzero(rng.uniform(n_sites) < nnz / n_sites).flatten()
        return torch.stack([flat // shape[1], flat % shape[1]])


class WithReplacement(Connectivity):
    """Draws sites twice, as DEEP R's first script did."""

    name = "wrong"

    def draw(self, shape, nnz, rng):
        return torch.stack([rng.integers(nnz, shape[0]), rng.integers(nnz, shape[1])])


def test_wrong_connectivities():
    found = names(check(Bernoulli()))
    assert "draws_exactly" in found
    assert "allocates_by_connections" in found
    assert "draws_exactly" in names(check(WithReplacement()))


class _Winners(nn.Module):
    def __init__(self, features, k):
        super().__init__()
        self.k = k
        self.duty = torch.zeros(features)  # no buffer: lost by a checkpoint

    def forward(self, x):
        flat = x.flatten(1) * torch.exp(-self.duty.mean())
        self.duty = self.duty + 1
        return torch.where(x >= flat.topk(self.k).values[:, -1:].view(-1, *[1] * (x.dim() - 1)), x, 0.0)


class ThresholdWinners(Activation):
    """Lets ties through, and keeps its duty cycle in a plain attribute."""

    name = "wrong"
    sparse = True

    def build(self, features):
        return _Winners(features, features // 2)


def test_wrong_activation():
    found = names(check(ThresholdWinners()))
    assert "counts_winners_exactly" in found
    assert "saves_what_it_learns" in found


class Leaky(CsrLinear):
    """Its backward gives the bias gradient twice."""

    def forward(self, x):
        return super().forward(x) + (self.bias - self.bias.detach())


class ForgetfulSlots(CsrLinear):
    def remap_slot(self, slot, remap):
        return slot


class ForgetfulBlocks(BlockLinear):
    """Momentum stays where it was while the blocks move."""

    def remap_slot(self, slot, remap):
        return slot


class DenseInside(CsrLinear):
    def forward(self, x):
        dense = torch.zeros(self.matrix_shape, dtype=x.dtype).view(-1).index_put((self.flat_sites(),), self.values_)
        return x @ dense.view(self.matrix_shape).T + self.bias


@pytest.mark.parametrize(
    ("module", "base", "found"),
    [
        (Leaky, Csr, "equals_the_masked_reference"),
        (ForgetfulSlots, Csr, "rewires_in_place"),
        (ForgetfulBlocks, Block, "rewires_in_place"),
        (DenseInside, Csr, "allocates_by_connections"),
    ],
)
def test_wrong_layers(module, base, found):
    class Wrong(base):
        """Builds a wrong module."""

        name = "wrong"

        def build(self, template, conn, bias):
            return module.from_connections(conn, bias)

    assert found in names(check(Wrong()))


class NamesNorms(Model):
    """Calls a normalisation prunable, by having a weight, and cannot be narrowed."""

    name = "wrong"

    def build(self, data, act):
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(torch.Size(data.input_shape).numel()), nn.LazyLinear(data.n_outputs))

    def prunable(self, network):
        return ["1"]


def test_wrong_model():
    found = names(check(NamesNorms()))
    assert "names_its_prunable_modules" in found
    assert "narrows" in found


class Careless(Dataset):
    """Assumes that its files are there."""

    name = "wrong"
    info: ClassVar[DataInfo] = DataInfo("classification", (2,), 3)

    def files(self, root):
        return sorted(root.iterdir())

    def load(self, root, split):
        return TensorData(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


def test_wrong_dataset():
    assert "explains_absent_files" in names(check(Careless()))


def test_wrong_manners():
    class NoHelp(Magnitude):
        name = "No Help"
        power: float = 1.0

    NoHelp.__doc__ = ""
    assert names(check(NoHelp()))[:3] == ["has_a_name", "explains_itself", "bounds_its_numbers"]


def test_messages_teach():
    (problem,) = [text for text in check(Mutating()) if "leaves_its_input_alone" in text]
    assert "expected: unchanged connections" in problem
    assert "got:      changed: weight" in problem
    assert "mend:     use x.abs(), not x.abs_()" in problem


class Power(Pruner):
    """A right one, with a hyper-parameter."""

    name = "power"
    exponent: float = Field(1.0, gt=0, description="of the magnitude")

    def score(self, conn):
        return conn.weight.abs() ** self.exponent


@conformance(Power(), Power(exponent=2))
def test_the_decorator_runs_every_check(check):
    check()
