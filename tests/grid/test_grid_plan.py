from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from grid_plugins import CATALOGUE, GIB, grid_of, within
from hypothesis import given, settings, strategies as st

from sparsefleet.errors import InvalidGrid, UserError
from sparsefleet.grid.arms import Judge
from sparsefleet.grid.expand import Point, Skip, count, expand, walk
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.plan import duration_text, plan, refuse_too_many
from sparsefleet.grid.totals import Counted, Totals, expanded

ARMS = "control_arms: [random-static, small-dense]\n"


def both(text: str, memory: int = 24 * GIB) -> tuple[Totals, Totals]:
    grid = grid_of(text)
    judge = Judge(grid, Facts(CATALOGUE, memory))
    return expanded(grid, judge), Counted(grid, judge).count()


def numbers(totals: Totals) -> tuple[object, ...]:
    reasons = [dict(totals.skipped), dict(totals.infeasible), dict(totals.no_rival)]
    return totals.points, totals.own, totals.twins, dict(totals.controls), *reasons


AXES = [
    "density: [1.0, 0.1, 0.02]",
    "density: [0.5, 0.1]",
    "layer: [masked, csr, dense]",
    "layer: {values: [csr, fixed-fan-in], when: {density: 0.1}}",
    "method: [{rewirer: set}, {rewirer: deep-r, optimizer.sgd.momentum: 0}, {pruner: magnitude, layer: csr}]",
    "method: [{rewirer: set, optimizer: {sgd: {lr: {select: [0.3, 0.4]}}}}, {rewirer: {rigl: {drop_fraction: {select: [0.1, 0.3]}}}}, {rewirer: static}]",
    "method: [{rewirer: set, train.epochs: 7}, {rewirer: static}, {rewirer: deep-r}, {rewirer: snfs, when: {layer: masked}}]",
    "activation: [relu, k-winners, {value: {k-winners: {density: 0.2}}, optimizer.sgd.lr: 0.5}]",
    "optimizer: [{sgd: {lr: 0.1}}, {sgd: {lr: 0.1, momentum: 0.9}}, {adam: {lr: 0.1}}]",
    "optimizer.sgd.lr: [0.1, 0.2, 0.3]",
    "train.epochs: [2, 7]",
    "train: [{epochs: 7}, {batch_size: 32}]",
    "model.mlp.hidden: [[8], [16, 16], [30000]]",
    "model: [mlp, convnet, rigid]",
    "optimizer: [{sgd: {lr: {select: [0.1, 0.7]}, momentum: 0.9}}, {adam: {lr: {select: [0.1, 0.2, 0.3]}}}]",
    "train.weight_decay: [0, {select: [0.1, 0.2]}]",
    "connectivity: [random, {value: small-world, when: {layer: csr}}]",
    "resources.cpus: [1, 2]",
]
INCLUDES = [
    "{layer: csr, density: 0.1, method: {rewirer: set}}",
    "{layer: csr, density: 0.1, method: {rewirer: set}, seeds: [1, 7]}",
    "{activation: k-winners, seeds: 1}",
    "{density: 1.0, layer: dense, train.epochs: 7}",
    "{density: 0.02, method: {rewirer: static}}",
    "{density: 0.1, layer: csr, method: {rewirer: set}, optimizer.sgd.lr: {select: [0.1, 0.3]}}",
]
FIXED = "dense: {optimizer: {sgd: {lr: 0.01}}}\n"
TUNED = "optimizer.sgd.lr: {select: [0.1, 0.2]}\n"
BASES = [
    FIXED,
    f"density: 0.1\n{FIXED}",
    TUNED,
    f"density: 0.1\n{TUNED}{FIXED}",
    f"density: 0.1\n{TUNED}train.weight_decay: {{select: [0, 0.1]}}\n",
    "dense: {optimizer: {sgd: {lr: {select: [0.01, 0.1]}}}}\n",
    f"{TUNED}density: 0.1\ndense: {{train.label_smoothing: {{select: [0, 0.1]}}}}\n",
]
EXCLUDES = ["{layer: csr, density: 0.1}", "{activation: k-winners}", "{method: [deep-r, set], density: 0.02}", "{train.epochs: 7}"]


def _some(options: list[str], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(options), max_size=most, unique_by=lambda line: line.split(":")[0] if options is AXES else line)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(_some(AXES, 4), _some(INCLUDES, 2), _some(EXCLUDES, 2), st.sampled_from(BASES), st.sampled_from([24 * GIB, 2**22]))
def test_counting_agrees_with_expanding(axes: list[str], include: list[str], exclude: list[str], base: str, memory: int) -> None:
    text = base + "method: {rewirer: rigl}\nseeds: 2\n" + ARMS
    text += "axes:\n" + "".join(f"  {line}\n" for line in axes) if axes else ""
    text += "include:\n" + "".join(f"  - {line}\n" for line in include) if include else ""
    text += "exclude:\n" + "".join(f"  - {line}\n" for line in exclude) if exclude else ""
    try:
        one, other = both(text, memory)
    except InvalidGrid:
        return
    assert numbers(one) == numbers(other)
    grid = grid_of(text)
    found = list(walk(grid, CATALOGUE, memory))
    assert one.points == count(grid)
    assert one.trials == sum(isinstance(item, Point) for item in found)
    assert one.skipped.total() == sum(item.n for item in found if isinstance(item, Skip))


def test_the_counts_of_a_mixed_grid_by_hand() -> None:
    text = (
        "seeds: 3\n"
        + ARMS
        + "axes: {density: [0.1, 0.02], layer: [masked, csr], method: [{rewirer: set}, {rewirer: rigl}, {rewirer: deep-r}]}\n"
    )
    for totals in both(text):
        assert totals.points == 2 * 2 * 3 * 3
        assert totals.skipped.total() == 2 * 2 * 3  # deep-r wants plain SGD
        assert totals.own == 2 * 2 * 2 * 3
        assert totals.twins == 3
        assert dict(totals.controls) == {"random-static": 2 * 2 * 3, "small-dense": 2 * 3}


def _values(n: int, step: float = 1e-6) -> str:
    return ", ".join(f"{step * (k + 1):.6f}" for k in range(n))


MILLION = f"method: {{rewirer: set}}\nseeds: 10\naxes:\n  optimizer.sgd.lr: [{_values(100)}]\n  density: [{_values(1000, 1e-4)}]\n"


WIDE = ("model.mlp.hidden=[6400]",)  # at 1e-4 a narrow net would have no connection for each layer


def test_a_million_points_are_planned_exactly_in_a_second() -> None:
    with within(1.0):
        grid = grid_of(MILLION.replace("[0.0001,", "[\n0.0001,").replace(", ", ",\n") + ARMS.replace(", ", ", "), set_=WIDE)
        made = plan(grid, CATALOGUE)
    assert (made.points, made.totals.own, made.totals.twins) == (1_000_000, 1_000_000, 1_000)
    assert dict(made.totals.controls) == {"random-static": 1_000_000, "small-dense": 1_000_000}
    assert made.lines()[0].startswith(
        "grid small: 100 optimizer.sgd.lr × 1000 densities × 10 seeds = 1,000,000 trials, + 1,000 dense twins"
    )


@pytest.mark.parametrize(("n_axes", "n"), [(2, 10**6), (4, 10**12), (6, 10**18)])
def test_huge_grids_are_counted_and_refused(n_axes: int, n: int) -> None:
    names = ["optimizer.sgd.lr", "density", "train.weight_decay", "validation", "train.label_smoothing", "limits.timeout_s"][:n_axes]
    lines = "".join(f"  {name}:\n    [{_values(500, 1e-4)},\n    {_values(1000, 1e-4).split(', ', 500)[-1]}]\n" for name in names)
    with within(n_axes):  # the thousand values of an axis take a tenth of a second to read and judge; 10**6 points would take minutes
        grid = grid_of("method: {rewirer: set}\naxes:\n" + lines, set_=WIDE)
        assert count(grid) == n
        made = plan(grid, CATALOGUE)
        with pytest.raises(
            UserError, match=rf"^{n:,} trials = 1000( × 1000){{{n_axes - 1}}} × 1; at one second each .* on \d+ slots"
        ) as caught:
            refuse_too_many(grid)
    assert f"--max-trials {n}" in str(caught.value)
    refuse_too_many(grid, max_trials=n)
    assert made.points == n
    if "limits.timeout_s" not in names:
        assert made.totals.own == n
    else:  # two time limits, one trial
        assert (made.totals.own, made.totals.repeated) == (n // 1000, n - n // 1000)


def test_more_than_ten_thousand_are_refused_and_not_one_less() -> None:
    refuse_too_many(grid_of("seeds: 10000\n"))
    with pytest.raises(UserError, match=r"10,001 trials"):
        refuse_too_many(grid_of("seeds: 10001\n"))


def test_a_plan_is_made_in_a_fresh_process_within_time_and_memory_and_without_torch(tmp_path) -> None:
    from grid_plugins import HEAD

    path = tmp_path / "million.yaml"
    path.write_text(HEAD.replace("[64]", "[6400]") + MILLION.replace(", ", ",\n    ").replace("{rewirer", "{rewirer"))
    code = (
        "import json, sys, time\n"
        "from sparsefleet.registry import catalog\n"
        "catalog()\n"
        "started = time.process_time()\n"
        "from sparsefleet.grid.load import load_grid\n"
        "from sparsefleet.grid.plan import plan\n"
        "installed = catalog()\n"
        f"made = plan(load_grid({str(path)!r}, catalog=installed), installed)\n"
        "heavy = [name for name in ('torch', 'ray', 'mlflow', 'click', 'rich') if name in sys.modules]\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "peak = int(status['VmHWM'].split()[0]) / 1024\n"  # ru_maxrss would be that of this process: exec hands it on
        "print(json.dumps([made.trials, time.process_time() - started, peak, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    trials, seconds, peak_mib, heavy = json.loads(done.stdout)
    assert trials == 2_001_000  # as many small-dense, and a twin for each learning rate and seed
    assert seconds < 1.0
    assert peak_mib < 100
    assert heavy == []


def test_a_tangled_grid_still_has_its_count() -> None:
    lrs, epochs = _values(200), ", ".join(str(n + 1) for n in range(200))
    text = f"method: {{rewirer: set}}\ndensity: 0.1\naxes:\n  optimizer.sgd.lr: [{lrs}]\n  train.epochs: [{epochs}]\n"
    made = plan(grid_of(text), CATALOGUE)
    assert (made.points, made.trials) == (40_000, 120_000)
    tangled = f"  train: [{', '.join(f'{{epochs: {n}, drop_last: true}}' for n in range(1, 150))}]\n"
    grid = grid_of(text.replace("\n    ", "") + tangled)
    made = plan(grid, CATALOGUE)
    assert made.points == 40_000 * 149
    assert made.totals is None
    assert "not counted" in made.lines()[1]
    assert made.to_json()["exact"] is False


def test_the_difference_between_twin_and_trial_is_shown() -> None:
    made = plan(grid_of("density: 0.1\nmethod: {rewirer: set}\ndense: {optimizer: {sgd: {lr: 0.01, momentum: 0.9}}}\n"), CATALOGUE)
    assert "  note   the dense twin differs: optimizer.sgd.lr 0.01 (trial: 0.1)" in made.lines()


@dataclass
class Row:
    key: str
    spec_id: str
    seconds: float | None
    state: str = "SUCCEEDED"


class Finished:
    """A ledger in which some trials are finished."""

    def __init__(self, *rows: Row, measure_s: float | None = None) -> None:
        self.rows, self.measure_s = rows, measure_s

    def finished(self, spec_ids: Iterable[str], /) -> list[Row]:
        asked = set(spec_ids)
        return [row for row in self.rows if row.spec_id in asked]

    def measure_seconds(self) -> float | None:
        return self.measure_s


def test_what_the_ledger_holds_is_cached_and_gives_the_estimate() -> None:
    grid = grid_of("seeds: 4\nmax_parallel: 1\ndensity: 0.1\nmethod: {rewirer: set}\ncontrol_arms: []\n")
    points = list(expand(grid, CATALOGUE))
    (d0, d1, *_), (s0, s1, *_) = ([p.spec.spec_id for p in points if p.arm == arm] for arm in ("dense", "sparse"))
    rows = [Row(d0, d0, 10.0), Row(d1, d1, 14.0), Row(s0, s0, 60.0), Row(s1, s1, None, "TIMEOUT")]
    made = plan(grid, CATALOGUE, Finished(*rows))
    assert (made.trials, made.cached, made.to_run) == (8, 4, 4)
    assert made.estimate is not None
    assert made.estimate.seconds == 2 * 12.0 + 2 * 60.0  # each arm by its own
    assert str(made.estimate) == "about 2 min 24 s on 1 slot, from 3 finished trials (±24%)"
    assert made.to_json()["estimate_s"] == 144.0
    assert json.loads(json.dumps(made.to_json()))["schema"] == 1
    assert "  cached 4  already finished under the same id; 1 of them failed, resume --failed tries those again" in made.lines()


def test_trials_that_ran_under_other_code_are_counted_apart_and_tell_how_long_it_takes() -> None:
    grid = grid_of("seeds: 2\nmax_parallel: 1\ndensity: 0.1\nmethod: {rewirer: set}\ncontrol_arms: []\n")
    ids = [p.spec.spec_id for p in expand(grid, CATALOGUE)]
    rows = [Row("old", ids[0], 10.0), Row("older", ids[0], 10.0), Row("k" + ids[1], ids[1], 10.0), Row("old", ids[1], 10.0)]
    made = plan(grid, CATALOGUE, Finished(*rows), key_of=lambda point: f"k{point.spec.spec_id}")
    assert (made.cached, made.to_run, made.to_json()["other_code"]) == (1, 3, 1)
    assert made.estimate is not None
    assert made.estimate.seconds == 30.0
    assert "  cached 1  already finished under the same id; 1 more finished under other code, data or device" in made.lines()


def test_measurements_are_counted_and_their_time_told() -> None:
    text = "seeds: 5\ncontrol_arms: [random-static]\nlayer: csr\nmethod: {rewirer: set}\naxes:\n  density: [0.1, 0.02]\n"
    made = plan(grid_of(text), CATALOGUE, Finished(measure_s=30.0))
    assert made.to_json()["measurements"] == 2 * 2 * 2  # densities, SET and its control arm, forward and step
    assert made.to_json()["measurements_s"] == 240.0
    assert any("timing  8  configurations, at most: about 4 min, one at a time" in line for line in made.lines())
    assert plan(grid_of(text + "measure: {level: none}\n"), CATALOGUE, Finished()).to_json()["measurements"] == 0


def test_durations_read_like_durations() -> None:
    assert [duration_text(s) for s in (3, 61, 20_400, 86_400, 500_000, 10**10)] == [
        "3 s",
        "1 min 1 s",
        "5 h 40 min",
        "1 day",
        "5 days 18 h",
        "316 years 321 days",
    ]


def test_the_plan_reads_like_this() -> None:
    text = "seeds: 3\ncontrol_arms: [random-static]\naxes:\n  density: [0.1, 0.02]\n  method: [{rewirer: set}, {rewirer: deep-r}]\n"
    assert plan(grid_of(text), CATALOGUE, Finished()).lines() == [
        "grid small: 2 densities × 2 methods × 3 seeds = 12 trials, + 3 dense twins, + 6 control arms (6 random-static)",
        "  skip    6  deep-r is defined for SGD without momentum; the optimizer is sgd with momentum 0.9",
        "  cached  0  already finished under the same id",
        "  run    15  no finished trial of this grid to estimate the time from",
        "  memory sparse and random-static, layer=masked, width 64: 182 KiB "
        "(weights 19.4 KiB, indices 4.6 KiB, gradients 37.9 KiB, optimizer 19.4 KiB, activations 101 KiB), data and torch aside",
        "  memory dense, layer=dense, width 64: 159 KiB (weights 19.4 KiB, gradients 19.4 KiB, optimizer 19.4 KiB, activations 101 KiB), data and torch aside",
        "next: sparsefleet submit grid g.yaml",
    ]
