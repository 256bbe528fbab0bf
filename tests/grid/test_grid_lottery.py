"""Lotteries, fine-tuning and the arms that train another trial's connections, as a grid asks for them."""

from __future__ import annotations

import pytest
from grid_plugins import CATALOGUE, GIB, HEAD, grid_of

from sparsefleet.errors import InvalidGrid
from sparsefleet.grid.arms import Judge
from sparsefleet.grid.expand import Point, expand
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.load import load_text
from sparsefleet.grid.totals import Counted, expanded

LOTTERY = "density: 0.125\nmethod: {pruner: magnitude, lottery: {levels: 3}}\n"
NONE = "control_arms: []\n"


def points(text: str) -> list[Point]:
    return list(expand(grid_of(text), CATALOGUE, 24 * GIB))


def test_a_lottery_is_a_chain_of_levels_from_the_dense_twin() -> None:
    for seed in (0, 4):
        dense, *levels = [p for p in points(LOTTERY + NONE + "seeds: [0, 4]\n") if p.spec.seed == seed]
        assert dense.arm == "dense"
        assert [p.arm for p in levels] == ["sparse"] * 3
        assert [p.spec.density for p in levels] == pytest.approx([0.5, 0.25, 0.125])
        assert levels[-1].spec.density == 0.125  # exactly
        assert [p.start for p in levels] == [dense.spec, levels[0].spec, levels[1].spec]
        assert [p.spec.start.trial for p in levels] == [p.start.spec_id for p in levels]
        assert [p.spec.method.label for p in levels] == ["magnitude+lottery"] * 3
        assert [p.spec.method.variant for p in levels] == ["level 1 of 3", "level 2 of 3", "level 3 of 3"]
        assert all(p.twin == dense.spec and not p.added for p in levels)


def test_seeds_of_a_level_name_the_same_row() -> None:
    found = [p.spec for p in points(LOTTERY + NONE + "seeds: [3, 0]\n") if p.spec.start]
    rows = {s.seed: [t.start.row for t in found if t.seed == s.seed] for s in found}
    assert rows[3] == rows[0] == [s.start.trial for s in found if s.seed == 0]


def test_learning_rate_rewinding_and_the_step_are_named() -> None:
    text = "density: 0.5\nmethod: {pruner: magnitude, lottery: {levels: 1, rewind: learning-rate, to: 0.25}}\n"
    (one,) = [p for p in points(text + NONE) if p.arm == "sparse"]
    assert (one.spec.method.rewind.what, one.spec.method.rewind.to) == ("learning-rate", 0.25)
    assert one.spec.method.label == "magnitude+lr-rewind"


def test_mask_arms_stand_beside_every_level() -> None:
    found = points(LOTTERY + "control_arms: [reinit-mask, shuffled-mask]\n")
    levels = [p for p in found if p.arm == "sparse"]
    for arm, gives, draw in (("reinit-mask", "mask", 1), ("shuffled-mask", "shuffled-mask", 0)):
        beside = [p for p in found if p.arm == arm]
        assert [p.start for p in beside] == [p.spec for p in levels]
        assert [(p.spec.start.trial, p.spec.start.gives) for p in beside] == [(p.spec.spec_id, gives) for p in levels]
        assert {(p.spec.method.label, p.spec.init.draw, p.added) for p in beside} == {("static", draw, True)}
        assert [p.spec.density for p in beside] == [p.spec.density for p in levels]
        assert {p.twin.spec_id for p in beside} == {levels[0].twin.spec_id}


def test_arms_of_two_methods_are_two_rows() -> None:
    from sparsefleet.report.groups import without_seed

    text = "control_arms: [reinit-mask]\nseeds: 2\ndensity: 0.1\naxes: {method: [{rewirer: set}, {rewirer: rigl}]}\n"
    arms = [p.spec.to_json() for p in points(text) if p.arm == "reinit-mask"]
    assert len(arms) == 4
    assert len({repr(without_seed(spec)) for spec in arms}) == 2


def test_a_pattern_has_no_shuffled_arm() -> None:
    text = 'density: 0.5\nmethod: {pruner: magnitude, pattern: "n:m"}\ncontrol_arms: [shuffled-mask, reinit-mask]\n'
    assert [p.arm for p in points(text)] == ["dense", "sparse", "reinit-mask"]


def test_small_dense_stands_beside_the_last_level_and_the_others_say_so() -> None:
    levels = [p for p in points(LOTTERY) if p.arm == "sparse"]
    assert [p.rival is None for p in levels] == [True, True, False]
    assert levels[0].no_rival == "small-dense stands beside the last level of a lottery"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("density: 0.1\nmethod: {rewirer: set, lottery: {levels: 3}}\n", "belong to a pruner"),
        ("density: 0.1\nmethod: {pruner: magnitude, lottery: {levels: 3}, schedule: cubic}\n", "each level of a lottery prunes once"),
        ("density: 0.1\nmethod: {pruner: magnitude, lottery: {levels: 0}}\n", "greater than or equal to 1"),
        ("density: 0.1\nmethod: {pruner: magnitude, lottery: {level: 3}}\n", "level"),
        ("density: 0.1\nmethod: {pruner: magnitude, start: twin, lottery: {levels: 2}}\n", "start does not go with it"),
        ("density: 0.1\nmethod: {rewirer: set, fine_tune: {optimizer: {sgd: {lr: 0.1}}}}\n", "belong to a pruner"),
        ("density: 0.1\nmethod: {pruner: magnitude, fine_tune: {optimiser: {sgd: {lr: 0.1}}}}\n", "did you mean 'optimizer'"),
        ("density: 0.1\nmethod: {pruner: magnitude, fine_tune: {lr_schedule: cosine}}\n", "fine_tune.optimizer is missing"),
        ("density: 0.1\nmethod: {pruner: magnitude, rewind: {levels: 2}}\n", "unknown key 'rewind'"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    with pytest.raises(InvalidGrid) as caught:
        grid_of(text)
    assert told in str(caught.value)


def test_fine_tuning_reaches_the_spec() -> None:
    text = "density: 0.1\nmethod: {pruner: magnitude, schedule: {one-shot: {at: 0.6}}, fine_tune: {optimizer: {adam: {lr: 0.0001}}}}\n"
    (one,) = [p.spec for p in points(text + NONE) if p.arm == "sparse"]
    assert (one.method.fine_tune.optimizer.kind, one.method.fine_tune.optimizer.lr) == ("adam", 0.0001)
    assert one.method.fine_tune.lr_schedule.kind == "constant"
    assert one.method.variant == "fine-tuned by adam"


@pytest.mark.parametrize("arms", ["[shuffled-mask]", "[reinit-mask, small-dense, random-static]"])
def test_counts_without_expansion_agree(arms: str) -> None:
    text = f"control_arms: {arms}\nseeds: 3\naxes:\n  density: [1, 0.1, 0.2]\n  layer: [masked, csr]\n"
    grid = grid_of(text + '  method: [{rewirer: set}, {rewirer: static}, {pruner: magnitude, pattern: "n:m"}]\n', HEAD)
    judge = Judge(grid, Facts(CATALOGUE, 24 * GIB))
    one, other = expanded(grid, judge), Counted(grid, judge).count()
    assert (one.points, one.own, one.twins, one.controls, one.skipped) == (
        other.points,
        other.own,
        other.twins,
        other.controls,
        other.skipped,
    )
    assert sum(one.controls.values()) > 0


def test_levels_are_counted_as_trials_of_the_grid() -> None:
    grid = grid_of(LOTTERY + NONE + "seeds: 2\n")
    totals = expanded(grid, Judge(grid, Facts(CATALOGUE, 24 * GIB)))
    assert (totals.points, totals.own, totals.twins, totals.repeated) == (6, 6, 2, 0)


def test_a_criterion_made_for_a_global_ranking_gets_it_unless_the_grid_says_otherwise() -> None:
    from sparsefleet.registry import catalog

    def distribution(method: str) -> str:
        grid = load_text(HEAD + NONE + f"density: 0.1\nmethod: {{{method}}}\n", "g.yaml", catalog=catalog())
        return next(p.spec.method.distribution for p in expand(grid, catalog(), 24 * GIB) if p.arm == "sparse")

    assert distribution("pruner: snip") == "global"
    assert distribution("pruner: snip, distribution: uniform") == "uniform"
    assert distribution("pruner: magnitude") == "uniform"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("pruner: movement", "movement scores what training has moved, and the first pruning is before the first step"),
        ("pruner: wanda, distribution: global", "distribution global compares them all"),
    ],
)
def test_a_criterion_that_has_nothing_to_score_is_refused_before_training(method: str, told: str) -> None:
    from sparsefleet.registry import catalog

    with pytest.raises(InvalidGrid, match=told):
        load_text(HEAD + f"density: 0.1\nmethod: {{{method}}}\n", "g.yaml", catalog=catalog())


def test_grasp_needs_classes() -> None:
    from sparsefleet.registry import catalog

    text = HEAD.replace("digits", "random-regression") + "density: 0.1\nmethod: {pruner: grasp}\n"
    with pytest.raises(InvalidGrid, match="draws its examples by class, and random-regression has none"):
        load_text(text, "g.yaml", catalog=catalog())
