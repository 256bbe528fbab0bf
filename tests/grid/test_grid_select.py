from __future__ import annotations

import pytest
from grid_plugins import CATALOGUE, grid_of, within

from sparsefleet.errors import InvalidGrid, UserError
from sparsefleet.grid.arms import Judge
from sparsefleet.grid.expand import Point, count, expand
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.plan import plan
from sparsefleet.grid.totals import Counted

LR = "optimizer.sgd.lr: {select: [0.01, 0.1, 1]}\n"
SET = "density: 0.1\nlayer: csr\nmethod: {rewirer: set}\n"


def points(text: str, again: bool = False) -> list[Point]:
    return list(expand(grid_of(text), CATALOGUE, again=again))


def of(found: list[Point], arm: str) -> list[Point]:
    return [p for p in found if p.arm == arm]


def test_every_candidate_is_a_trial_of_every_seed_in_every_arm() -> None:
    found = points(f"seeds: 2\n{SET}{LR}control_arms: [random-static, small-dense]\n")
    for arm in ("dense", "sparse", "random-static", "small-dense"):
        mine = of(found, arm)
        assert [(p.spec.seed, p.spec.optimizer.lr) for p in mine] == [(s, lr) for s in (0, 1) for lr in (0.01, 0.1, 1.0)]
        assert [(p.selection.candidate, p.selection.n, p.selection.paths) for p in mine[:3]] == [
            (i, 3, ("optimizer.lr",)) for i in range(3)
        ]
        assert len({p.selection.id for p in mine}) == 1
    assert len({p.selection.id for p in found}) == 4
    twin, rival = of(found, "dense")[0].selection.id, of(found, "small-dense")[0].selection.id
    assert {(p.twin_selection, p.rival_selection) for p in of(found, "sparse")} == {(twin, rival)}
    assert {(p.twin_selection, p.rival_selection) for p in of(found, "small-dense")} == {(twin, None)}


def test_a_candidate_is_the_same_trial_as_in_a_grid_without_select() -> None:
    plain = {p.spec.spec_id for p in points(f"{SET}optimizer.sgd.lr: 0.01\n")}
    assert plain == {p.spec.spec_id for p in points(SET + LR) if p.spec.optimizer.lr == 0.01}


def test_the_dense_block_has_its_own_candidates() -> None:
    found = points(SET + "dense: {optimizer: {sgd: {lr: {select: [0.2, 0.3]}, momentum: 0.5}}}\n")
    assert [(p.spec.optimizer.lr, p.spec.optimizer.momentum) for p in of(found, "dense")] == [(0.2, 0.5), (0.3, 0.5)]
    assert [p.selection for p in of(found, "sparse")] == [None]
    assert of(found, "sparse")[0].twin_selection == of(found, "dense")[0].selection.id
    assert [p.spec.optimizer.lr for p in of(found, "small-dense")] == [0.2, 0.3]


def test_an_override_tunes_one_arm_and_another_takes_its_place() -> None:
    methods = (
        "axes:\n  method:\n    - {rewirer: rigl, optimizer.sgd.lr: 0.5}\n    - {rewirer: {set: {drop_fraction: {select: [0.1, 0.2]}}}}\n"
    )
    found = points(f"density: 0.1\n{LR}dense: {{optimizer: {{sgd: {{lr: 0.1}}}}}}\n{methods}")
    rigl = [p for p in of(found, "sparse") if p.spec.method.rewirer.name == "rigl"]
    assert [(p.spec.optimizer.lr, p.selection) for p in rigl] == [(0.5, None)]
    tuned = [p for p in of(found, "sparse") if p.spec.method.rewirer.name == "set"]
    assert len(tuned) == 6
    assert tuned[0].selection.paths == ("method.rewirer.params.drop_fraction", "optimizer.lr")
    assert len(of(found, "dense")) == 1  # the twin forgets the rewirer, and its learning rate is fixed
    assert of(found, "dense")[0].selection is None


def test_an_include_may_select() -> None:
    found = points(
        "include:\n  - {layer: csr, density: 0.1, method: {rewirer: set}, optimizer: {adam: {lr: {select: [0.1, 0.2]}}}, seeds: 1}\n"
    )
    assert [(p.arm, p.spec.optimizer.lr) for p in found] == [(a, lr) for a in ("dense", "sparse", "small-dense") for lr in (0.1, 0.2)]


def test_a_whole_optimizer_or_schedule_may_be_selected() -> None:
    text = "optimizer: {select: [{sgd: {lr: 0.1}}, {adam: {lr: 0.001}}]}\n"
    head = "name: small\ndataset: digits\nmodel: mlp\ntrain: {epochs: 2, lr_schedule: {select: [constant, cosine]}}\n"
    found = list(expand(grid_of(text + SET, head), CATALOGUE))
    assert sorted((p.spec.optimizer.kind, p.spec.train.lr_schedule.kind) for p in of(found, "sparse")) == [
        (optimizer, schedule) for optimizer in ("adam", "sgd") for schedule in ("constant", "cosine")
    ]
    with pytest.raises(InvalidGrid, match=r"optimizer is selected as a whole"):
        grid_of(text + SET + "axes: {optimizer.sgd.momentum: [0, 0.5]}\n", head)


def test_a_candidate_that_cannot_run_is_skipped_alone() -> None:
    grid = grid_of(
        "density: 0.1\noptimizer.sgd.momentum: {select: [0, 0.9]}\nmethod: {rewirer: deep-r}\ndense: {optimizer: {sgd: {lr: 1}}}\n"
    )
    found = list(expand(grid, CATALOGUE))
    assert [(p.spec.optimizer.momentum, p.selection) for p in of(found, "sparse")] == [(0.0, None)]
    assert list(plan(grid, CATALOGUE).totals.skipped.values()) == [1]


def test_each_candidate_starts_from_the_twin_with_its_own_settings() -> None:
    found = points(f"{LR}density: 0.1\nmethod: {{pruner: magnitude, start: twin}}\n")
    for p in of(found, "sparse"):
        assert p.start.optimizer.lr == p.spec.optimizer.lr


def test_a_twin_may_have_a_part_in_several_selections() -> None:
    methods = "axes:\n  method:\n"
    methods += (
        "    - {rewirer: set, optimizer.sgd.lr: {select: [0.1, 0.2]}}\n    - {rewirer: rigl, optimizer.sgd.lr: {select: [0.2, 0.3]}}\n"
    )
    parts = [(p.spec.optimizer.lr, p.selection.id) for p in of(points(f"density: 0.1\n{methods}", again=True), "dense")]
    assert [lr for lr, _ in parts] == [0.1, 0.2, 0.2, 0.3]
    assert len({name for _, name in parts}) == 2
    assert [p.spec.optimizer.lr for p in of(points(f"density: 0.1\n{methods}"), "dense")] == [0.1, 0.2, 0.3]


def test_the_grid_with_select_is_another_sweep() -> None:
    assert grid_of(SET + LR).sweep != grid_of(SET + LR.replace(", 1]", "]")).sweep != grid_of(SET).sweep
    assert grid_of(SET + LR).sweep == grid_of(SET + "optimizer.sgd.lr:\n  select:\n  - 1e-2\n  - 0.1\n  - 1\n").sweep


def test_set_selects_too() -> None:
    grid = grid_of(SET, set_=("optimizer.sgd.lr={select: [0.1, 0.2]}",))
    assert count(grid) == 2


def test_a_bad_candidate_is_told_with_its_place() -> None:
    with pytest.raises(InvalidGrid) as caught:
        grid_of("method: {rewirer: {set: {every: {select: [10, 0]}}}}\n")
    assert "g.yaml:6 method.rewirer.set.every" in str(caught.value)


def test_the_plan_counts_candidates() -> None:
    lines = plan(grid_of(f"seeds: 2\n{SET}{LR}"), CATALOGUE).lines()
    assert lines[0] == "grid small: 3 candidates × 2 seeds = 6 trials, + 6 dense twins, + 6 control arms (6 small-dense)"
    uneven = plan(
        grid_of(f"seeds: 2\ndensity: 0.1\n{LR}axes: {{method: [{{rewirer: set}}, {{rewirer: rigl, optimizer.sgd.lr: 5}}]}}\n"), CATALOGUE
    )
    assert uneven.lines()[0].startswith("grid small: 2 methods × 2 seeds, with candidates = 8 trials")


def test_a_tuned_dense_is_shown_by_the_plan() -> None:
    made = plan(grid_of(SET + "dense: {optimizer: {sgd: {lr: {select: [0.2, 0.3]}, momentum: 0.9}}}\n"), CATALOGUE)
    assert "  note   the dense twin differs: optimizer.sgd.lr select 0.2, 0.3 (trial: 0.1)" in made.lines()


def test_a_million_tuned_points_are_counted_in_a_second() -> None:
    values = ",\n    ".join(f"{1e-4 * (k + 1):.4f}" for k in range(1000))
    text = f"method: {{rewirer: set}}\nseeds: 10\n{LR}train.weight_decay: {{select: [{values[:800].rsplit(',', 1)[0]}]}}\naxes:\n  density: [{values}]\n"
    n = len(values[:800].rsplit(",", 1)[0].split(","))
    with within(1.0):
        grid = grid_of(text, set_=("model.mlp.hidden=[6400]",))
        totals = Counted(grid, Judge(grid, Facts(CATALOGUE))).count()
    assert (totals.points, totals.own, totals.twins) == (1000 * 10 * 3 * n, 1000 * 10 * 3 * n, 10 * 3 * n)
    assert totals.points > 1_000_000
    assert totals.controls["small-dense"] == totals.own


def test_too_many_candidates_are_refused() -> None:
    many = ", ".join(str(k + 1) for k in range(40))
    with pytest.raises(UserError, match="1,600 candidates"):
        grid_of(f"{SET}train.batch_size: {{select: [{many}]}}\ntrain.epochs: {{select: [{many}]}}\n")
