"""The kit names each fault of pruners that are wrong as public implementations are wrong."""

import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from faults import assert_named, failed_checks
from pydantic import PrivateAttr

from sparsefleet import Pruner


class _Pruner(Pruner):
    """Wrong in one way."""

    name = "wrong"


class Densifying(_Pruner):  # a mask of the whole weight: every mask-based pruning package
    def score(self, conn):
        dense = torch.zeros(conn.shape, dtype=conn.weight.dtype)
        dense[conn.row, conn.col] = conn.weight
        return dense[conn.row, conn.col].abs()


class DensifyingInNumpy(_Pruner):  # the same outside of torch, where its own profiler sees nothing
    def score(self, conn):
        dense = np.zeros(conn.shape)
        dense[conn.row, conn.col] = conn.weight
        return torch.from_numpy(dense[conn.row, conn.col]).abs()


class RowImportance(_Pruner):  # layer-wise sums over a flattened weight that mix positions into scores
    def score(self, conn):
        return conn.weight.abs() + 0.1 * conn.row


class ColumnImportance(_Pruner):  # the same across inputs
    def score(self, conn):
        return conn.weight.abs() + 0.1 * conn.col


class Mutating(_Pruner):  # abs_() on .data: trains on magnitudes afterwards
    def score(self, conn):
        return conn.weight.abs_()


class Mask(_Pruner):  # weight.abs() > threshold, returned as a bool mask
    def score(self, conn):
        return conn.weight.abs() > 0.5


class FloatMask(_Pruner):  # (w.abs() > torch.quantile(w.abs(), s)).float(): ties are lost or kept as they fall
    def score(self, conn):
        if not conn.nnz:
            return conn.weight
        return (conn.weight.abs() > torch.quantile(conn.weight.abs(), 0.5)).to(conn.weight.dtype)


class LaterTiesFirst(_Pruner):  # argsort without stable=True: of equal weights whoever comes last stays
    def score(self, conn):
        order = torch.argsort(conn.weight.abs(), stable=True)
        return torch.empty(conn.nnz, dtype=torch.float64).scatter_(0, order, torch.arange(conn.nnz, dtype=torch.float64))


class Multinomial(_Pruner):  # random pruning by torch.multinomial: "number of categories cannot exceed 2^24"
    def score(self, conn):
        if not conn.nnz:
            return conn.weight
        generator = torch.Generator().manual_seed(conn.rng.key % 2**31)
        last = torch.multinomial(conn.weight.abs().clamp(min=1e-9), 1, generator=generator)
        return conn.weight.abs() * (torch.arange(conn.nnz) != last)


class Wasteful(_Pruner):  # a column of pairwise values per connection: linear, and 256 bytes each
    def score(self, conn):
        return conn.weight.abs()[:, None].repeat(1, 64).mean(1)


class HalfPrecision(_Pruner):  # scores under autocast: different weights tie
    def score(self, conn):
        return conn.weight.abs().half()


class HalfInside(_Pruner):  # the same, and nobody sees it in the dtype
    def score(self, conn):
        return conn.weight.bfloat16().abs().to(conn.weight.dtype)


class FirstMaximum(_Pruner):  # normalises by the first layer of that name, for ever
    largest: ClassVar[dict[str, torch.Tensor]] = {}

    def score(self, conn):
        if not conn.nnz:
            return conn.weight
        return conn.weight.abs() / self.largest.setdefault(conn.layer, conn.weight.abs().max() + 1e-9)


class CachedByAddress(_Pruner):  # scores kept by data_ptr(): an optimizer writes in place
    kept: ClassVar[dict[object, torch.Tensor]] = {}

    def score(self, conn):
        key = conn.weight.data_ptr(), conn.nnz
        if key not in self.kept:
            self.kept.clear()
            self.kept[key] = conn.weight.abs()
        return self.kept[key]


class ClearsGradients(_Pruner):  # conn.grad.zero_() after it has been used
    def on_step(self, conn, lr, rng):
        conn.grad.zero_()

    def score(self, conn):
        return conn.weight.abs()


class Unseeded(_Pruner):  # torch.rand without a generator
    def score(self, conn):
        return torch.rand(conn.nnz, dtype=torch.float64)


class UnseededPython(_Pruner):  # Python's own generator
    def score(self, conn):
        return torch.tensor([random.random() for _ in range(conn.nnz)], dtype=torch.float64)


class NotANumber(_Pruner):  # w / |w| at a zero weight
    def score(self, conn):
        return conn.weight / conn.weight.abs()


class EmptyMaximum(_Pruner):  # normalises by the largest magnitude, and a layer may have lost its last connection
    def score(self, conn):
        return conn.weight.abs() / conn.weight.abs().max().clamp(min=1e-12)


class UndeclaredGradient(_Pruner):  # reads .grad, which is None in most trials
    def score(self, conn):
        return (conn.weight * conn.grad).abs()


class GradientIfThere(_Pruner):  # "if p.grad is not None": silently another method where there is none
    def score(self, conn):
        return conn.weight.abs() if conn.grad is None else (conn.weight * conn.grad).abs()


class UndeclaredDense(_Pruner):  # reads absent weights, which only masked storage has
    def score(self, conn):
        return conn.dense.weight[conn.row, conn.col].abs()


_AVERAGE = {}


class ModuleGlobal(_Pruner):  # an exponential average in a module global: a resumed trial starts it anew
    def before_step(self, conn):
        held = _AVERAGE.get(conn.nnz, 0.0)
        _AVERAGE[conn.nnz] = 0.9 * held + 0.1 * float(conn.weight.abs().mean())

    def score(self, conn):
        return (conn.weight.abs() - _AVERAGE.get(conn.nnz, 0.0)).abs()


class ClassAttribute(_Pruner):  # a mutable class attribute, shared by all trials of the process
    calls: ClassVar[list[int]] = []

    def on_step(self, conn, lr, rng):
        self.calls.append(1)
        conn.weight.mul_(1 + 1e-3 / len(self.calls))

    def score(self, conn):
        return conn.weight.abs()


class Private(_Pruner):  # an attribute of the object: gone when the trial is resumed
    _n_steps: int = PrivateAttr(0)

    def on_step(self, conn, lr, rng):
        self._n_steps += 1
        conn.weight.mul_(1 + 1e-3 / self._n_steps)

    def score(self, conn):
        return conn.weight.abs()


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        # densifying
        (Densifying, "allocates_by_connections", "never build a mask"),
        (DensifyingInNumpy, "allocates_by_connections", "never build a mask"),
        # order-dependent
        (RowImportance, "does_not_depend_on_order", "output units"),
        (ColumnImportance, "does_not_depend_on_order", "input units"),
        # mutating
        (Mutating, "leaves_its_input_alone", "changed: weight"),
        # thresholding and ties
        (Mask, "gives_one_score_per_connection", "torch.bool"),
        (FloatMask, "ranks_its_connections", "2 different scores"),
        (LaterTiesFirst, "leaves_ties_to_the_core", "equal weights, equal scores"),
        # more than 2**24 connections
        pytest.param(Multinomial, "scores_more_than_float32_counts", "16,777,217", marks=pytest.mark.slow),
        pytest.param(Wasteful, "scores_more_than_float32_counts", "bytes per connection", marks=pytest.mark.slow),
        # precision, numbers, empty layers
        (HalfInside, "keeps_the_precision", "16 bits"),
        (FirstMaximum, "scores_what_it_is_given", "first layer"),
        (CachedByAddress, "scores_what_it_is_given", "data_ptr()"),
        (ClearsGradients, "leaves_its_input_alone", "changed: grad"),
        (HalfPrecision, "keeps_the_precision", "float16"),
        (NotANumber, "gives_one_score_per_connection", "NaN"),
        (EmptyMaximum, "survives_an_empty_layer", "conn.nnz is 0"),
        # non-deterministic
        (Unseeded, "is_deterministic", "conn.rng"),
        (UnseededPython, "is_deterministic", "conn.rng"),
        # lying about what is needed
        (UndeclaredGradient, "declares_what_it_reads", "needs_grad = True"),
        (GradientIfThere, "declares_what_it_reads", "needs_grad = True"),
        (UndeclaredDense, "declares_what_it_reads", "needs_dense = True"),
        # state that is lost when a trial is resumed
        (ModuleGlobal, "resumes_to_the_bit", "module global"),
        (ClassAttribute, "resumes_to_the_bit", "never in the class"),
        (Private, "resumes_to_the_bit", "private attribute"),
    ],
)
def test_each_fault_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class _Whole(_Pruner):
    """Scores the whole model, wrong in one way."""

    needs_calibration = True

    def score_all(self, calibration):
        return {name: conn.weight.abs() for name, conn in calibration.layers.items()}


class OneLayerForgotten(_Whole):  # loops over nn.Linear and misses the last one
    def score_all(self, calibration):
        return dict(list(super().score_all(calibration).items())[:-1])


class LeavesGradients(_Whole):  # loss.backward() on the model's own parameters: the first step adds them
    def score_all(self, calibration):
        for x, y in calibration.batches:
            calibration.loss(calibration.forward({}, x), y).backward()
        return super().score_all(calibration)


class WritesWeights(_Whole):  # SynFlow's linearize(): magnitudes, and the signs are never put back
    def score_all(self, calibration):
        return {name: conn.weight.abs_() for name, conn in calibration.layers.items()}


class DrawsInputs(_Whole):  # random inputs in place of data, from the global generator
    def score_all(self, calibration):
        x = torch.randn_like(calibration.batches[0][0])
        weights = {name: conn.weight.clone().requires_grad_() for name, conn in calibration.layers.items()}
        grads = torch.autograd.grad(calibration.forward(weights, x).square().sum(), list(weights.values()))
        return {name: grad.abs() for name, grad in zip(weights, grads, strict=True)}


class EarlierUnitsMatter(_Whole):  # the unit's number enters the score
    def score_all(self, calibration):
        return {name: conn.weight.abs() * (1 + 0.1 * conn.row) for name, conn in calibration.layers.items()}


class DividesByZero(_Whole):  # normalises each layer by a sum that is zero
    def score_all(self, calibration):
        return {name: conn.weight.abs() / (conn.weight.sum() - conn.weight.sum()) for name, conn in calibration.layers.items()}


class OverUnits(_Whole):  # |w| over the sum of its input unit: 0 / 0 where all weights of a unit are 0
    def score_all(self, calibration):
        return {name: self.share(conn) for name, conn in calibration.layers.items()}

    def share(self, conn):
        size = conn.weight.abs().double()
        return size / size.new_zeros(conn.n_in).index_add_(0, conn.col, size)[conn.col]


class NoExamples(_Whole):  # an integer division that comes to nothing
    def calibration_examples(self, n_classes):
        return n_classes // 1000


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (OneLayerForgotten, "scores_every_layer", "calibration.layers"),
        (LeavesGradients, "leaves_the_model_alone", "torch.autograd.grad"),
        (WritesWeights, "leaves_the_model_alone", "conn.weight.clone()"),
        (DrawsInputs, "is_deterministic", "conn.rng"),
        (EarlierUnitsMatter, "does_not_depend_on_order", "position"),
        (DividesByZero, "scores_every_layer", "NaN or infinity"),
        (OverUnits, "scores_every_layer", "sums and norms of 0"),
        (NoExamples, "asks_for_examples", "at least 1"),
    ],
)
def test_each_fault_of_whole_model_pruners_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class _Reviving(_Pruner):
    """Scores all sites, wrong in one way."""

    needs_dense = revives = True

    def score_sites(self, conn):
        return conn.dense.weight.abs()


class StoredOnly(_Reviving):  # scores of the mask's support, where all sites were asked
    def score_sites(self, conn):
        return conn.weight.abs()


class WithoutDense(_Reviving):  # the flag that makes the plan choose masked storage was forgotten
    needs_dense = False


class WritesAbsent(_Reviving):  # clears absent weights while it scores, so that none returns with its value
    def score_sites(self, conn):
        conn.dense.weight[0] = 0
        return conn.dense.weight.abs()


class ScoresInTheClass(_Reviving):  # accumulated scores in a class attribute: a resumed trial starts from zero
    total: ClassVar[dict[str, torch.Tensor]] = {}

    def before_step(self, conn):
        self.total["score"] = self.total.get("score", 0) - conn.dense.grad * conn.dense.weight

    def score_sites(self, conn):
        return self.total["score"]


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [
        (StoredOnly, "scores_every_site", "(12, 20)"),
        (WithoutDense, "says_that_it_needs_dense_values", "needs_dense = True"),
        (WritesAbsent, "leaves_its_input_alone", "dense.weight"),
        (ScoresInTheClass, "resumes_to_the_bit", "conn.dense.state"),
    ],
)
def test_each_fault_of_reviving_pruners_is_named(plugin, check, words):
    assert_named(plugin(), check, words)


class Right(_Pruner):
    """What all of these should have been."""

    def score(self, conn):
        return conn.weight.abs()


class RightWhole(_Whole):
    pass


class RightReviving(_Reviving):
    pass


@pytest.mark.parametrize("plugin", [Right, RightWhole, RightReviving])
def test_without_the_fault_nothing_fails(plugin):
    assert failed_checks(plugin(), None) == {}
