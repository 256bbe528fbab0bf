import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparsefleet.errors import PluginError
from sparsefleet.sparsity import select
from sparsefleet.sparsity.select import keep_best, keep_best_per_row, lowest_within, rank_within, share_of


def reference(score: list[float], n_keep: int) -> list[bool]:
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    return [i in order[:n_keep] for i in range(len(score))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.0, 0.5, float("inf")]), min_size=1, max_size=30), st.data())
def test_keeps_exactly_the_best_and_breaks_ties_by_position(score, data):
    n_keep = data.draw(st.integers(0, len(score)))
    assert keep_best(torch.tensor(score), n_keep).tolist() == reference(score, n_keep)


def test_all_equal_scores_keep_the_first():
    assert keep_best(torch.ones(8), 3).tolist() == [True] * 3 + [False] * 5


def test_more_elements_than_quantile_takes():
    n = 2**24 + 100
    keep = keep_best(torch.arange(n, dtype=torch.float32).neg(), 1000)
    assert int(keep.sum()) == 1000
    assert bool(keep[:999].all())


def test_nan_scores_are_refused_with_their_number():
    with pytest.raises(PluginError, match="2 of 3 scores are NaN"):
        keep_best(torch.tensor([float("nan"), 1.0, float("nan")]), 1)


def test_per_row_keeps_what_each_row_is_allowed():
    score = torch.tensor([3.0, 1.0, 2.0, 5.0, 5.0, 0.0])
    row = torch.tensor([0, 0, 0, 1, 1, 2])
    assert keep_best_per_row(score, row, torch.tensor([2, 1, 0])).tolist() == [True, False, True, True, False, False]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.1, 0.29, 0.3, 0.5, 0.58, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_the_lowest_share_of_each_group_is_that_of_its_ranks(values, share):
    score, group = torch.tensor([value for value, _ in values]), torch.tensor([part for _, part in values])
    low = lowest_within(score, group, share)
    assert torch.equal(low, rank_within(score, group) <= share)
    assert int(low.sum()) == share_of(int(group.sum()), share) + share_of(int((~group).sum()), share)


@pytest.mark.parametrize("kind", ["normal", "sorted", "few", "two", "infinite"])
@pytest.mark.parametrize("k", [1, 2, 1000, 150_000, 299_999, 300_000])
def test_the_kth_of_many_is_the_one_that_torch_finds(kind, k):
    gen = torch.Generator().manual_seed(k)
    values = torch.randn(300_000, generator=gen)
    values = {
        "normal": values,
        "sorted": values.sort().values,
        "few": (values * 3).round(),
        "two": (values > 0.5).float(),
        "infinite": torch.where(values > 2, torch.inf, values),
    }[kind]
    assert select._kth_smallest(values, k) == torch.kthvalue(values, k).values
    assert int(keep_best(values, k).sum()) == k
