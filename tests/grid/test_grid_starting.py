"""A rewirer may start denser than asked: the plan tells the memory of the start, and skips what it cannot start with."""

import sys

import pytest
import torch
from grid_plugins import within
from torch import nn

from sparsefleet.errors import InvalidGrid, PluginError
from sparsefleet.grid.expand import Skip, walk
from sparsefleet.grid.load import load_text
from sparsefleet.grid.plan import plan
from sparsefleet.nn import Sparsifier
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.build import build_network

BODY = """
from pydantic import Field
from sparsefleet import Rewirer, UserError, hookimpl

class Dense(Rewirer):
    name = "from-above"
    varies_nnz = True
    initial: float = Field(1.0, gt=0, le=1, description="density of the start")
    def first_density(self, density):
        if density > self.initial:
            raise UserError(f"it starts at {self.initial} and cannot prune to {density}", fix="a larger initial")
        return self.initial

class Undeclared(Dense):
    name = "undeclared"
    varies_nnz = False

class Wrecked(Rewirer):
    name = "wrecked"
    varies_nnz = True
    def first_density(self, density):
        return {}["a" if density < 0.5 else "b"]

@hookimpl
def sparsefleet_rewirers():
    return [Dense, Undeclared, Wrecked]
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    path = tmp_path / "above.py"
    path.write_text(BODY)
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield catalog()
    for name in [name for name in sys.modules if name.startswith("above_")]:
        del sys.modules[name]


def grid(installed, rewirer, density="0.01", hidden="[4096, 4096]", more=""):
    text = f"name: g\ndataset: mnist\nmodel: {{mlp: {{hidden: {hidden}}}}}\nlayer: csr\noptimizer: {{sgd: {{lr: 0.1}}}}\ntrain: {{epochs: 1}}\n"
    text += f"method: {{rewirer: {rewirer}}}\n" + (f"density: {density}\n" if density else "") + more
    return load_text(text, "g.yaml", catalog=installed)


def weights_of(installed, rewirer, density="0.01", more="", **kwargs):
    made = plan(grid(installed, rewirer, density, more=more), installed, **kwargs)
    (found,) = [entry["weights"] for entry in made.to_json()["memory"] if entry["arm"] == "sparse"]
    return found / 4 - 3 * (2 * 4096 + 10)


def test_the_memory_of_a_plan_is_that_of_the_start(installed):
    sites = 784 * 4096 + 4096**2 + 4096 * 10
    assert weights_of(installed, "set") == pytest.approx(0.01 * sites, rel=1e-3)
    assert weights_of(installed, "mest") == pytest.approx(0.015 * sites, rel=1e-3)
    assert weights_of(installed, "{from-above: {initial: 0.5}}") == pytest.approx(0.5 * sites, rel=1e-3)
    assert weights_of(installed, "from-above") == pytest.approx(sites, rel=1e-4)


def test_layers_that_are_full_take_no_more(installed):
    made = weights_of(installed, "{mest: {upper: [8.0, 1.0], lower: [1.0, 1.0], switch: [0.5]}}", "0.2")
    assert made == pytest.approx(784 * 4096 + 4096**2 + 4096 * 10, rel=1e-6)


def test_what_does_not_fit_at_the_start_is_skipped(installed):
    made = plan(grid(installed, "from-above"), installed, memory_bytes=300 << 20)
    ((reason, _),) = made.totals.skipped.items()
    assert "its connections need" in reason
    assert not plan(grid(installed, "set"), installed, memory_bytes=300 << 20).totals.skipped


@pytest.mark.parametrize("counts", [False, True])
def test_a_density_that_it_cannot_start_with_is_a_skip(installed, monkeypatch, counts):
    if counts:
        monkeypatch.setattr("sparsefleet.grid.plan.EXPANDED_UP_TO", 0)
    asked = grid(installed, "{from-above: {initial: 0.5}}", "", "[64]", "axes: {density: [0.1, 0.3, 0.6, 0.7]}\n")
    made = plan(asked, installed)
    assert dict(made.totals.skipped) == {
        "it starts at 0.5 and cannot prune to 0.6; a larger initial": 1,
        "it starts at 0.5 and cannot prune to 0.7; a larger initial": 1,
    }
    assert made.totals.own == 2
    skips = [item for item in walk(asked, installed) if isinstance(item, Skip)]
    assert {skip.reason for skip in skips} == set(made.totals.skipped)


def test_parameters_that_a_rewirer_refuses_are_a_mistake_of_the_grid(installed):
    with pytest.raises(InvalidGrid, match="the last upper bound 1"):
        grid(installed, "{mest: {upper: [1.5, 1.1], lower: [1.0, 1.0], switch: [0.5]}}")


def test_one_that_would_stay_denser_is_refused_by_plan_trial_and_sparsifier(installed):
    asked = grid(installed, "undeclared", "0.1", "[64]")
    ((reason, _),) = plan(asked, installed).totals.skipped.items()
    assert "varies_nnz" in reason
    trials = walk(grid(installed, "from-above", "0.1", "[64]"), installed)
    fits = next(point for point in trials if point.arm == "sparse")
    refused = fits.spec.model_copy(
        update={
            "method": fits.spec.method.model_copy(update={"rewirer": fits.spec.method.rewirer.model_copy(update={"name": "undeclared"})})
        }
    )
    with pytest.raises(PluginError, match="would keep it to the end"):
        build_network(refused, registry=Registry(installed))
    net = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(PluginError, match="would keep it to the end"):
        Sparsifier(net, torch.optim.SGD(net.parameters(), lr=0.1), rewirer={"undeclared": {}}, density=0.5, total_steps=500)


def test_what_a_plugin_raises_is_a_reason(installed):
    ((reason, _),) = plan(grid(installed, "wrecked"), installed).totals.skipped.items()
    assert reason == "wrecked cannot start with density 0.01: KeyError: 'a'"


def test_ten_thousand_are_planned_in_seconds(installed):
    values = ",\n    ".join(f"{n / 2000:.4f}" for n in range(1, 1_001))
    asked = grid(installed, "from-above", "", "[64]", f"axes: {{density: [{values}]}}\nseeds: 10\n")
    with within(6):
        made = plan(asked, installed)
    assert made.totals.own == 10_000
