"""The choice of whole units: counts, ties, shares of weights and of units, against a plain enumeration."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparsefleet.errors import PluginError
from sparsefleet.sparsity.units import Matrix, choose_units, unit_scores

INPUT, HIDDEN, SECOND, OUTPUT = range(4)
CHAIN = (Matrix(HIDDEN, INPUT, 1), Matrix(SECOND, HIDDEN, 1), Matrix(OUTPUT, SECOND, 1))
FREE = (False, True, True, False)


def scores(*sizes, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=gen, dtype=torch.float64) for n in sizes]


def weights(kept, matrices=CHAIN):
    counts = [int(part.sum()) for part in kept]
    return sum(counts[m.rows] * counts[m.cols] * m.run for m in matrices)


def test_a_units_score_is_the_norm_of_its_weights():
    weight = torch.tensor([[3.0, -4.0], [1.0, 1.0], [0.0, 5.0]])
    row = torch.arange(6) // 2
    assert unit_scores(weight.abs().reshape(-1), row, 3).tolist() == [7.0, 2.0, 5.0]
    assert unit_scores(weight.abs().reshape(-1), row, 3, p=2).tolist() == pytest.approx([5.0, math.sqrt(2), 5.0], abs=1e-15)


def test_signed_scores_are_summed_with_their_signs():
    assert unit_scores(torch.tensor([2.0, -3.0]), torch.tensor([0, 0]), 1).tolist() == [-1.0]


def test_nan_is_an_error():
    with pytest.raises(PluginError, match="1 of 2 scores are NaN"):
        unit_scores(torch.tensor([math.nan, 1.0]), torch.tensor([0, 1]), 2)


def test_half_of_the_units_is_half_of_each_layer_and_about_a_quarter_of_the_inner_weights():
    kept = choose_units(scores(784, 300, 100, 10), FREE, CHAIN, 0.5, counts="units")
    assert [int(part.sum()) for part in kept] == [784, 150, 50, 10]
    assert weights(kept) == 784 * 150 + 150 * 50 + 50 * 10
    assert weights(kept, CHAIN[1:2]) == 300 * 100 / 4


@pytest.mark.parametrize("density", [0.02, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_a_share_of_weights_is_the_nearest_of_all_steps_towards_equal_shares(density):
    sizes = (20, 12, 7, 3)
    kept = choose_units(scores(*sizes), FREE, CHAIN, density)
    wanted = math.floor(density * weights([torch.ones(n) for n in sizes]) + 0.5)
    steps = []
    for q in (i / 10_000 for i in range(10_001)):  # every share of units that rounds to something else
        a, b = (max(1, math.floor(q * n + 0.5)) for n in sizes[1:3])
        steps.append(20 * a + a * b + 3 * b)
    assert abs(weights(kept) - wanted) <= min(abs(step - wanted) for step in steps)


def test_the_best_stay_and_ties_go_to_the_earlier():
    given_scores = [torch.ones(4), torch.tensor([2.0, 5.0, 5.0, 1.0]), torch.tensor([1.0, 1.0, 1.0]), torch.ones(2)]
    kept = choose_units(given_scores, FREE, CHAIN, 0.5, counts="units")
    assert kept[HIDDEN].tolist() == [False, True, True, False]
    assert kept[SECOND].tolist() == [True, True, False]  # 1.5 rounds up


def test_global_compares_all_units_and_leaves_each_layer_one():
    given_scores = [torch.ones(4), torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([1.0, 0.5]), torch.ones(2)]
    kept = choose_units(given_scores, FREE, CHAIN, 0.8, counts="units", distribution="global")
    assert [int(part.sum()) for part in kept] == [4, 4, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    density=st.floats(0.01, 1),
    seed=st.integers(0, 99),
    distribution=st.sampled_from(["uniform", "global"]),
)
def test_no_other_prefix_of_the_order_is_nearer(sizes, density, seed, distribution):
    found = scores(*sizes, seed=seed)
    kept = choose_units(found, FREE, CHAIN, density, distribution=distribution)
    whole = weights([torch.ones(n) for n in sizes])
    wanted = math.floor(density * whole + 0.5)
    order = []
    for group in (HIDDEN, SECOND):
        ranked = torch.sort(found[group], descending=True).values.tolist()
        order += [((k + 0.5) / sizes[group] if distribution == "uniform" else -ranked[k], group, k) for k in range(1, sizes[group])]
    counts, totals = [sizes[0], 1, 1, sizes[3]], []
    for step in itertools.chain([None], sorted(order)):
        if step:
            counts[step[1]] += 1
        totals.append(sum(counts[m.rows] * counts[m.cols] * m.run for m in CHAIN))
    ours = [int(part.sum()) for part in kept]
    missed = abs(weights(kept) - wanted)
    assert missed <= min(abs(total - wanted) for total in totals)
    assert distribution == "global" or all(
        abs(ours[g] / sizes[g] - ours[3 - g] / sizes[3 - g]) <= 1.5 * (1 / ours[g] + 1 / ours[3 - g]) for g in (1, 2)
    )


def test_what_is_gone_never_comes_back_and_fewer_units_are_nested():
    found = scores(6, 8, 8, 4)
    more = choose_units(found, FREE, CHAIN, 0.6)
    left = [score.masked_fill(~part, -math.inf) for score, part in zip(found, more, strict=True)]
    fewer = choose_units(left, FREE, CHAIN, 0.2)
    assert all(bool((part | ~less).all()) for part, less in zip(more, fewer, strict=True))
    assert [torch.equal(a, b) for a, b in zip(fewer, choose_units(found, FREE, CHAIN, 0.2), strict=True)] == [True] * 4


def test_permuted_units_give_permuted_choices():
    found, order = scores(6, 8, 5, 4), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    kept = choose_units(found, FREE, CHAIN, 0.4)
    found[HIDDEN] = found[HIDDEN][order]
    assert torch.equal(choose_units(found, FREE, CHAIN, 0.4)[HIDDEN], kept[HIDDEN][order])


@pytest.mark.slow
def test_more_weights_than_two_to_the_24():
    flat = torch.arange(5000 * 4000)
    score = (flat % 977).double()
    total = unit_scores(score, flat // 4000, 5000)
    assert total.tolist()[:2] == [float(score[:4000].sum()), float(score[4000:8000].sum())]
    kept = choose_units([torch.zeros(4000), total, torch.zeros(10)], (False, True, False), (Matrix(1, 0, 1), Matrix(2, 1, 1)), 0.3)
    assert int(kept[1].sum()) == 1500
