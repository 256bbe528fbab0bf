import pytest
from pydantic import ValidationError

from sparsefleet.sparsity.schedule import density_at, pruning_steps
from sparsefleet.sparsity.vocabulary import Cubic, Iterative, Linear, OneShot


@pytest.mark.parametrize("schedule", [OneShot(at=0.5), Linear(), Cubic(), Cubic(begin=0.1, end=0.7, every=7), Iterative(levels=4)])
@pytest.mark.parametrize("total", [100, 997, 10_000])
def test_the_target_is_reached_exactly_at_the_end_and_never_before(schedule, total):
    steps = pruning_steps(schedule, total)
    densities = [density_at(schedule, step, total, 0.1) for step in steps]
    assert densities[-1] == 0.1
    assert all(d > 0.1 for d in densities[:-1])
    assert densities == sorted(densities, reverse=True)
    assert density_at(schedule, steps[0] - 1, total, 0.1) == 1.0
    assert density_at(schedule, total, total, 0.1) == 0.1


@pytest.mark.parametrize("kind", [Linear, Cubic, Iterative])
@pytest.mark.parametrize(("begin", "end"), [(0.8, 0.5), (0.5, 0.5)])
def test_a_schedule_that_ends_before_it_begins_is_refused(kind, begin, end):
    with pytest.raises(ValidationError, match="begin must be below end"):
        kind(begin=begin, end=end)


def test_cubic_is_zhu_and_gupta():
    schedule = Cubic(begin=0.0, end=1.0, every=1)
    assert density_at(schedule, 50, 100, 0.1) == pytest.approx(1 - 0.9 * (1 - 0.5**3))


def test_linear_does_not_compound():
    schedule = Linear(begin=0.0, end=1.0, every=1)
    assert 1 - density_at(schedule, 29, 100, 0.1) == pytest.approx(0.9 * 0.29)


def test_iterative_keeps_the_same_share_at_each_level():
    schedule = Iterative(begin=0.0, end=1.0, levels=4)
    levels = [density_at(schedule, step, 100, 0.1) for step in pruning_steps(schedule, 100)]
    assert [b / a for a, b in zip([1.0, *levels], levels, strict=False)] == pytest.approx([0.1**0.25] * 4)
