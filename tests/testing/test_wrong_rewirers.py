"""The kit names each fault of rewirers that are wrong as public implementations are wrong."""

from typing import ClassVar

import pytest
import torch
from faults import assert_named, failed_checks
from pydantic import PrivateAttr

from sparsefleet import Rewirer, Update, keep_best


class _Rewirer(Rewirer):
    """Wrong in one way."""

    name = "wrong"


class OffByOne(_Rewirer):  # grows one fewer than it dropped
    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        keep = keep_best(conn.weight.abs(), conn.nnz - n_drop)
        return Update(keep, conn.select(keep).random_absent(max(0, n_drop - 1), rng))


class ThresholdingTies(_Rewirer):  # weight.abs() > the k-th value: all who tie go, and too few grow
    def update(self, conn, progress, rng, n_target):
        n_drop = self.drop_count(conn, progress)
        cut = conn.weight.abs().sort().values[n_drop] if n_drop < conn.nnz else torch.inf
        keep = conn.weight.abs() > cut
        return Update(keep, conn.select(keep).random_absent(n_drop, rng))


class UndeclaredVariation(_Rewirer):  # drops and never grows, and does not say that nnz varies
    def update(self, conn, progress, rng, n_target):
        keep = keep_best(conn.weight.abs(), conn.nnz - self.drop_count(conn, progress))
        return Update(keep, conn.select(keep).random_absent(0, rng))


class GrowsOnTheKept(_Rewirer):  # the gradient mask is not excluded from the candidates
    def grow(self, conn, k, rng):
        return torch.stack([conn.row[:k], conn.col[:k]])


class GrowsTwice(_Rewirer):  # rows and columns drawn by themselves: sites come twice
    def grow(self, conn, k, rng):
        return torch.stack([rng.integers(k, 2), rng.integers(k, 2)])


class SinglePositions(_Rewirer):  # flat positions through float32: above 2**24 only every 2nd, 4th, 8th … can be reached
    def grow(self, conn, k, rng):
        row, col = conn.random_absent(k, rng)
        flat = (row * conn.n_in + col).float().long().clamp(max=conn.n_sites - 1)
        return torch.stack([flat // conn.n_in, flat % conn.n_in]) if conn.n_sites > 2**24 else torch.stack([row, col])


class RegrowsTheDropped(_Rewirer):  # the mask of before is subtracted twice: what was dropped comes back, and nothing moves
    def update(self, conn, progress, rng, n_target):
        keep = super().update(conn, progress, rng, n_target).keep
        return Update(keep, torch.stack([conn.row[~keep], conn.col[~keep]]))


class ForgetsTheLastUnit(_Rewirer):  # randint(0, n_out - 1), whose upper bound is exclusive already
    def grow(self, conn, k, rng):
        sites = conn.random_absent(conn.n_sites - conn.nnz, rng)
        sites = sites[:, sites[0] < conn.n_out - 1]
        return sites[:, rng.distinct(k, sites.shape[1])] if sites.shape[1] >= k else conn.random_absent(k, rng)


class CutsTheList(_Rewirer):  # the first k of sorted candidates: only early units grow
    def grow(self, conn, k, rng):
        return conn.random_absent(min(4 * k, conn.n_sites - conn.nnz), rng)[:, :k]


class NeverStops(_Rewirer):  # an own clock without the hyper-parameter that ends it
    def due(self, progress):
        return progress.step > 0 and progress.step % self.every == 0


class MeanOfNothing(_Rewirer):  # grown weights as large as the others, where there are others
    def grown_weight(self, conn, sites, rng):
        return conn.weight.abs().mean().expand(sites.shape[1])


class SharesMemory(_Rewirer):  # the first weights, kept without a copy: they move with the weights
    def initial_state(self, conn):
        return {"first": conn.weight}


class CountsInUpdate(_Rewirer):  # a counter of updates: conn.memory is not update's to write
    def update(self, conn, progress, rng, n_target):
        conn.memory["n"] = torch.ones(1)
        return super().update(conn, progress, rng, n_target)


class MutatingUpdate(_Rewirer):  # abs_() on the stored weights
    def drop_score(self, conn):
        return conn.weight.abs_()


class WritesGradient(_Rewirer):  # zeroes gradients itself, under the optimizer's feet
    def on_step(self, conn, lr, rng):
        conn.grad.zero_()


class UnseededGrowth(_Rewirer):  # torch.randperm without a generator
    def grow(self, conn, k, rng):
        ranks = torch.randperm(conn.n_sites)
        flat = ranks[~torch.isin(ranks, conn.flat)][:k]
        return torch.stack([flat // conn.n_in, flat % conn.n_in])


class DenseMask(_Rewirer):  # a bool mask of the whole layer: 931 GiB at 1,000,000 x 1,000,000
    def grow(self, conn, k, rng):
        mask = torch.zeros(conn.n_sites, dtype=torch.bool)
        mask[conn.flat] = True
        flat = torch.nonzero(~mask).flatten()[:k]
        return torch.stack([flat // conn.n_in, flat % conn.n_in])


class EarlyRowsMatter(_Rewirer):  # the position in the flattened weight enters the score
    def drop_score(self, conn):
        return conn.weight.abs() + 0.1 * conn.row


class EarlyColumnsMatter(_Rewirer):  # the same across inputs
    def drop_score(self, conn):
        return conn.weight.abs() + 0.1 * conn.col


class KeepsTheFirst(_Rewirer):  # an update of its own that keeps the first of the list
    def update(self, conn, progress, rng, n_target):
        keep = torch.arange(conn.nnz) < conn.nnz - self.drop_count(conn, progress)
        return Update(keep, conn.select(keep).random_absent(conn.nnz - int(keep.sum()), rng))


class Multinomial(_Rewirer):  # draws whom to drop by torch.multinomial, which ends at 2**24
    def drop_score(self, conn):
        if conn.nnz < 3:
            return conn.weight.abs()
        generator = torch.Generator().manual_seed(conn.rng.key % 2**31)
        return conn.weight.abs() * (torch.arange(conn.nnz) != torch.multinomial(conn.weight.abs() + 1, 1, generator=generator))


class UndeclaredAbsentGradient(_Rewirer):  # grows by a gradient that nobody was asked to keep
    def grow(self, conn, k, rng):
        return conn.best_absent(k)


class UndeclaredGradient(_Rewirer):  # weighs by gradients without needs_grad
    def drop_score(self, conn):
        return (conn.weight * conn.grad).abs()


class UndeclaredDense(_Rewirer):  # reads absent weights, which sparse storage has not
    def drop_score(self, conn):
        return conn.dense.weight[conn.row, conn.col].abs()


class ForgetsGrownState(_Rewirer):  # state of the wrong length
    def initial_state(self, conn):
        return {"age": torch.zeros(60)}


class DueBeforeTheStart(_Rewirer):  # step % every == 0 at step 0
    def due(self, progress):
        return True


class Inflating(_Rewirer):  # rounds every layer's share up
    redistributes = True

    def redistribute(self, layers, progress):
        return {name: min(conn.n_sites, conn.nnz + 1) for name, conn in layers.items()}


class UndeclaredMoves(_Rewirer):  # moves connections between layers and does not say so
    def redistribute(self, layers, progress):
        return {name: conn.nnz for name, conn in layers.items()}


class RaisesOnEmpty(_Rewirer):  # divides by the mean of nothing
    def drop_score(self, conn):
        return conn.weight.abs() / conn.weight.abs().max()


_STEPS = []


class ModuleGlobal(_Rewirer):  # counts steps in a module global: a resumed trial starts anew
    def on_step(self, conn, lr, rng):
        _STEPS.append(1)
        conn.weight.mul_(1 + 1e-3 / len(_STEPS))


class ClassAttribute(_Rewirer):  # an average in a class attribute, shared by all trials of the process
    average: ClassVar[dict[str, torch.Tensor]] = {}

    def on_step(self, conn, lr, rng):
        self.average["mean"] = 0.9 * self.average.get("mean", torch.zeros(())) + 0.1 * conn.weight.mean()
        conn.weight.sub_(1e-3 * self.average["mean"])


class Private(_Rewirer):  # an attribute of the object: gone when the trial is resumed
    _n_steps: int = PrivateAttr(0)

    def on_step(self, conn, lr, rng):
        self._n_steps += 1
        conn.weight.mul_(1 + 1e-3 / self._n_steps)


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        # counts and ties
        (OffByOne, "keeps_the_count", "59"),
        (ThresholdingTies, "keeps_the_count", "never by a threshold"),
        (Inflating, "keeps_the_total", "apportion"),
        # what grows
        (GrowsOnTheKept, "grows_at_absent_sites", "are kept"),
        (GrowsTwice, "grows_at_absent_sites", "duplicates"),
        (SinglePositions, "grows_at_exact_sites", "float32"),
        (RegrowsTheDropped, "grows_anywhere", "nothing moves"),
        (ForgetsTheLastUnit, "grows_anywhere", "never output 11"),
        (CutsTheList, "grows_anywhere", "cut off"),
        # when, and with what it begins
        (NeverStops, "is_due_by_the_clock", "stop = 0.75"),
        (MeanOfNothing, "starts_grown_connections", "conn.nnz is 0"),
        (SharesMemory, "starts_grown_connections", "clone()"),
        (CountsInUpdate, "leaves_its_input_alone", "memory['n']"),
        # densifying
        (DenseMask, "allocates_by_connections", "never build a mask"),
        # order-dependent
        (EarlyRowsMatter, "does_not_depend_on_order", "output units"),
        (EarlyColumnsMatter, "does_not_depend_on_order", "input units"),
        (KeepsTheFirst, "does_not_depend_on_order", "same connections kept"),
        # mutating, non-deterministic
        (MutatingUpdate, "leaves_its_input_alone", "changed: weight"),
        (WritesGradient, "leaves_its_input_alone", "grad"),
        (UnseededGrowth, "is_deterministic", "rng argument"),
        # more than 2**24 connections
        pytest.param(Multinomial, "rewires_more_than_float32_counts", "16,777,217", marks=pytest.mark.slow),
        # lying about what is needed and done
        (UndeclaredGradient, "declares_what_it_reads", "needs_grad"),
        (UndeclaredAbsentGradient, "declares_what_it_reads", "needs_absent_grad"),
        (UndeclaredDense, "declares_what_it_reads", "needs_dense"),
        (UndeclaredVariation, "keeps_the_count", "connections after the update"),
        (UndeclaredMoves, "keeps_the_total", "redistributes = True"),
        # state
        (ForgetsGrownState, "starts_grown_connections", "per connection"),
        (ModuleGlobal, "resumes_to_the_bit", "module global"),
        (ClassAttribute, "resumes_to_the_bit", "never in the class"),
        (Private, "resumes_to_the_bit", "private attribute"),
        # clocks and empty layers
        (DueBeforeTheStart, "is_due_by_the_clock", "progress.step > 0"),
        (RaisesOnEmpty, "survives_an_empty_layer", "nnz = 0"),
    ],
)
def test_each_fault_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class Decays(_Rewirer):
    """A right one: its own state per connection, its own draws, its own step."""

    def initial_state(self, conn):
        return {"age": torch.zeros_like(conn.weight)}

    def on_step(self, conn, lr, rng):
        conn.state["age"].add_(1)
        conn.weight.mul_(1 - 1e-3 / conn.state["age"])

    def grown_weight(self, conn, sites, rng):
        return 0.01 * rng.normal(sites.shape[1]).to(conn.weight.dtype)


def test_without_a_fault_nothing_fails():
    assert failed_checks(Decays(), None) == {}
