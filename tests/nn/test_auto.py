"""auto: the fastest is taken, told, remembered under what it depends on, and resolved in a grid before the trial has a key."""

import json
import time

import pytest
import torch
from torch import nn

import sparsefleet.nn as sfnn
from sparsefleet.nn import race
from sparsefleet.nn.race import Setting, choose, preferred

SETTING = Setting((8, 12), 0.25, 4, "float32", "cpu", 1, constant_fan_in=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEFLEET_CACHE", str(tmp_path))
    return tmp_path / race.FOLDER


class _Slow(nn.Linear):
    """A layer that sleeps."""

    def __init__(self, seconds):
        super().__init__(12, 8)
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return super().forward(x)


def test_the_fastest_is_taken_told_and_remembered(cache, capsys):
    made = []

    def maker(name, seconds):
        return lambda: made.append(name) or _Slow(seconds)

    candidates = {"slow": maker("slow", 0.02), "fast": maker("fast", 0.0), "slower": maker("slower", 0.04)}
    choice = choose(SETTING, candidates, {"large": "it would take 9 GiB"})
    assert choice.name == "fast"
    assert list(choice.seconds) == ["slow", "fast", "slower"]
    told = capsys.readouterr().err
    assert told.startswith("auto: fast for 8 x 12, density 0.25, batch 4, float32 on cpu, 1 threads (measured now: fast ")
    assert told.index("fast ") < told.index("slow ") < told.index("slower ")
    assert "no large: it would take 9 GiB" in told
    assert made == ["slow", "fast", "slower"]

    assert choose(SETTING, candidates, {}) == choice
    assert capsys.readouterr().err == ""  # told once
    race._TOLD.clear()
    assert choose(SETTING, candidates, {}) == choice
    assert "(remembered: fast" in capsys.readouterr().err
    assert made == ["slow", "fast", "slower"]
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["setting"]["batch_size"] == 4

    choose(Setting((8, 12), 0.25, 8, "float32", "cpu", 1, constant_fan_in=True), candidates, {})
    assert len(made) == 6  # another batch size is another question
    path.write_text("{damaged")
    choose(SETTING, candidates, {})
    assert len(made) == 9


def test_an_earlier_one_is_preferred_where_the_difference_is_small():
    assert preferred({"first": 1.02, "second": 1.0}) == "first"
    assert preferred({"first": 1.05, "second": 1.0}) == "second"


def test_the_layer_is_the_one_that_won(capsys):
    layer = sfnn.AutoLinear(12, 8, 0.25, seed=1, batch_size=4)
    assert isinstance(layer, (sfnn.FixedFanInLinear, sfnn.CsrLinear, sfnn.MaskedModule))
    assert layer(torch.zeros(3, 12)).shape == (3, 8)
    uneven = sfnn.AutoLinear(3, 2, connections=torch.tensor([[0, 1, 1], [2, 0, 1]]))
    assert not isinstance(uneven, sfnn.FixedFanInLinear)
    assert uneven.flat_sites().tolist() == [2, 3, 4]
    assert "no fixed-fan-in: the fan-in is not constant" in capsys.readouterr().err


GRID = """
name: auto
dataset: digits
model: {mlp: {hidden: [32]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1, batch_size: 32}
density: 0.25
layer: auto
seeds: 1
axes:
  method: [{rewirer: set}, {pruner: magnitude, pattern: row}]
"""


@pytest.mark.slow
def test_a_grid_holds_the_name_that_was_chosen(monkeypatch):
    """Times are given, since a busy machine's would decide otherwise each time; the next test takes them."""
    from sparsefleet.grid import choosing
    from sparsefleet.grid.expand import walk
    from sparsefleet.grid.load import load_text
    from sparsefleet.registry import catalog

    told, asked = {"fixed-fan-in": 3.0, "csr": 1.0, "masked": 2.0}, []

    def raced(setting, candidates, left_out, lease):
        asked.append((setting.shape, setting.density, setting.batch_size, setting.threads, sorted(candidates)))
        return race.Choice("csr", {name: told[name] for name in candidates}, dict(left_out))

    choosing._fastest.cache_clear()
    monkeypatch.setattr(race, "choose", raced)
    found = list(walk(load_text(GRID, "auto.yaml", catalog=catalog()), catalog()))
    assert {point.spec.layer.name for point in found if point.arm == "sparse"} == {"csr"}
    assert {shape: rest for shape, *rest, _ in asked} == {(32, 64): [0.25, 32, 1], (10, 32): [0.25, 32, 1]}
    assert asked[0][-1] == asked[1][-1] == ["csr", "fixed-fan-in", "masked"]
    assert asked[-1][-1] == ["csr", "masked"]  # whole rows are no constant fan-in
    choosing._fastest.cache_clear()


@pytest.mark.slow
def test_a_grid_measures_under_a_lease(capsys, cache):
    from sparsefleet.grid import choosing
    from sparsefleet.grid.expand import walk
    from sparsefleet.grid.load import load_text
    from sparsefleet.registry import catalog

    choosing._fastest.cache_clear()
    grid = load_text(GRID.replace(", {pruner: magnitude, pattern: row}", ""), "auto.yaml", catalog=catalog())
    names = {point.spec.layer.name for point in walk(grid, catalog()) if point.arm == "sparse"}
    assert len(names) == 1
    assert names <= {"fixed-fan-in", "csr", "masked"}
    assert capsys.readouterr().err.count("measured now") == 2
    assert len([path for path in cache.iterdir() if path.suffix == ".json"]) == 2
    choosing._fastest.cache_clear()
    assert {point.spec.layer.name for point in walk(grid, catalog()) if point.arm == "sparse"} == names
    assert capsys.readouterr().err == ""
    choosing._fastest.cache_clear()
