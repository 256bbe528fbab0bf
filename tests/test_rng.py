import subprocess
import sys

import pytest
import torch

from sparsefleet.rng import Rng, key_of, uniform_at


def test_values_are_a_function_of_key_and_position_alone():
    whole = uniform_at(5, torch.arange(1000))
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform_at(5, shuffled), whole[shuffled])
    assert not torch.equal(uniform_at(6, torch.arange(1000)), whole)


def test_another_process_draws_the_same():
    code = "from sparsefleet.rng import Rng; r = Rng(3, 'a', 1.5); print(r.uniform(4).tolist(), r.normal(2).tolist(), r.distinct(3, 10**12).tolist())"
    rng = Rng(3, "a", 1.5)
    expected = f"{rng.uniform(4).tolist()} {rng.normal(2).tolist()} {rng.distinct(3, 10**12).tolist()}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert done.stdout.strip() == expected


def test_uniform_and_normal_have_their_moments():
    n = 200_000
    uniform, normal = Rng("u").uniform(n), Rng("n").normal(n)
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.004 and abs(float(uniform.var()) - 1 / 12) < 0.001
    assert abs(float(normal.mean())) < 0.012 and abs(float(normal.std()) - 1) < 0.01
    counts = torch.histc(uniform, 64, 0, 1)
    chi_square = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert chi_square < 110  # 63 degrees of freedom: p < 0.001 above 103


def test_neighbouring_positions_are_uncorrelated():
    u = uniform_at(key_of(0, "weight", "fc1"), torch.arange(100_000)) - 0.5
    for lag in (1, 2, 64, 784):
        assert abs(float((u[:-lag] * u[lag:]).mean()) * 12) < 0.02


@pytest.mark.parametrize(("n", "high"), [(0, 5), (5, 5), (3, 4), (100, 10**12), (1000, 1500), (1, 1)])
def test_distinct_is_exact_ascending_and_in_range(n, high):
    drawn = Rng("d", n).distinct(n, high)
    assert drawn.numel() == n
    assert bool((drawn[1:] > drawn[:-1]).all())
    assert n == 0 or (int(drawn.min()) >= 0 and int(drawn.max()) < high)


def test_distinct_gives_every_subset_equally_often():
    counts: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        subset = tuple(Rng("s", i).distinct(2, 5).tolist())
        counts[subset] = counts.get(subset, 0) + 1
    assert len(counts) == 10
    assert max(abs(c - 600) for c in counts.values()) < 100  # 4.3 standard deviations


def test_distinct_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="cannot draw 6 different values of 5"):
        Rng("x").distinct(6, 5)


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [([0, 3, 5, 2], [4, 3, 10, 9]), ([0, 0], [3, 0]), ([], []), ([1] * 50, [10**12] * 50), ([999, 1], [1000, 1000])],
)
def test_distinct_in_groups_is_exact_in_every_group(counts, sizes):
    drawn = Rng("g").distinct_in_groups(torch.tensor(counts, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64))
    assert bool((drawn[1:] > drawn[:-1]).all())
    ends = torch.cumsum(torch.tensor(sizes, dtype=torch.int64), 0)
    assert torch.bincount(torch.searchsorted(ends, drawn, right=True), minlength=len(counts)).tolist() == counts


def test_distinct_in_groups_gives_every_subset_equally_often():
    """Of four places two, by drawing them, and of five places three, by drawing those left out."""
    few: dict[tuple[int, ...], int] = {}
    many: dict[tuple[int, ...], int] = {}
    for i in range(3000):
        drawn = Rng("gs", i).distinct_in_groups(torch.tensor([2, 3]), torch.tensor([4, 5])).tolist()
        few[tuple(drawn[:2])] = few.get(tuple(drawn[:2]), 0) + 1
        many[tuple(drawn[2:])] = many.get(tuple(drawn[2:]), 0) + 1
    assert (len(few), len(many)) == (6, 10)
    assert max(abs(c - 500) for c in few.values()) < 90  # 4.4 standard deviations
    assert max(abs(c - 300) for c in many.values()) < 72


def test_distinct_in_groups_draws_large_orders_in_parts():
    counts = torch.full((3000,), 1000)
    drawn = Rng("parts").distinct_in_groups(counts, torch.full((3000,), 10_000))
    assert drawn.numel() == 3_000_000
    assert bool((torch.bincount(drawn // 10_000, minlength=3000) == 1000).all())


def test_distinct_in_groups_refuses_more_than_a_group_has():
    with pytest.raises(ValueError, match="fewer places"):
        Rng("x").distinct_in_groups(torch.tensor([1, 4]), torch.tensor([5, 3]))
