"""Every reproduction that ships: its selectors each mean one configuration of its own grid, whose budget is the published one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sparsefleet.grid.expand import Point, expand
from sparsefleet.registry import catalog
from sparsefleet.report.groups import leaf, without_seed
from sparsefleet.report.reproducing import fits
from sparsefleet.report.reproduction import Figure, Reproduction, Selector, load_reproduction, shipped_reproductions
from sparsefleet.trial.spec import canonical_json

NAMES = shipped_reproductions()
FAMILIES = ("dataset", "model", "layer", "connectivity", "activation")


@pytest.fixture(autouse=True)
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of connections that sparselinear-user reads."""
    draw, pixel = np.random.default_rng(0), np.repeat(np.arange(784), 200)
    np.save(tmp_path / "sparselinear-user.npy", np.unique(np.stack([draw.integers(0, 2000, pixel.size), pixel]), axis=1))
    monkeypatch.setenv("SPARSEFLEET_DATA", str(tmp_path))


@lru_cache
def loaded(name: str) -> tuple[Reproduction, list[Point]]:
    reproduction = load_reproduction(name)
    return reproduction, list(expand(reproduction.loaded_grid(catalog()), catalog()))


def meant(points: list[Point], selector: Selector) -> list[Point]:
    return [p for p in points if fits(selector, p.arm, p.spec.to_json())]


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_means_one_configuration(name: str) -> None:
    reproduction, points = loaded(name)
    assert reproduction.name == name
    for row in reproduction.rows:
        selectors = [row.select] if isinstance(row, Figure) else row.selectors
        for selector in selectors:
            specs = {canonical_json([p.arm, without_seed(p.spec.to_json())]) for p in meant(points, selector)}
            assert len(specs) == 1, (selector, len(specs))


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_has_the_published_budget(name: str) -> None:
    reproduction, points = loaded(name)
    for row in reproduction.rows:
        for selector in [row.select] if isinstance(row, Figure) else row.selectors:
            chosen = meant(points, selector)
            assert len({p.spec.seed for p in chosen}) >= row.budget["seeds"]
            for key, wanted in row.budget.items():
                if key not in ("seeds", "steps", "n_test"):
                    body = chosen[0].spec.to_json()
                    assert (body[key]["name"] if key in FAMILIES else leaf(body, key)) == wanted, key


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_names_all_that_makes_a_training_short(name: str) -> None:
    reproduction, _ = loaded(name)
    for row in reproduction.rows:
        assert {"dataset", "train.batch_size", "train.augment", "validation", "n_test", "seeds"} <= set(row.budget)
        assert "steps" in row.budget or "train.epochs" in row.budget or not isinstance(row, Figure)


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_counts_the_trials(name: str) -> None:
    reproduction, points = loaded(name)
    assert f"{len({p.spec.spec_id for p in points})} trials" in reproduction.cost


@pytest.mark.parametrize("name", NAMES)
def test_a_tolerance_has_its_reason(name: str) -> None:
    reproduction, _ = loaded(name)
    assert [row.select for row in reproduction.rows if isinstance(row, Figure) and f"{row.tolerance:g}" not in row.because] == []


def test_the_tables_are_whole() -> None:
    """Method by density of the published table of LeNet-300-100, one row each, and the same for the others."""
    figures = {name: [row for row in loaded(name)[0].rows if isinstance(row, Figure)] for name in NAMES}
    cells = {(row.select["method"], row.select["density"]) for row in figures["lenet-300-100"] if "method" in row.select}
    densities = (0.1, 0.05, 0.04, 0.03, 0.02, 0.01)
    assert cells == {(method, density) for method in ("snfs", "dsr", "set", "deep-r") for density in densities}
    assert [len(figures[name]) for name in ("lenet-300-100-error", "sparselinear-mnist", "sparselinear-user", "wide-mnist")] == [
        10,
        6,
        1,
        1,
    ]
    assert (len(figures["wrn-22-2"]), len(figures["wrn-28-2"])) == (16, 10)


@pytest.mark.parametrize("name", ["wrn-22-2", "wrn-28-2"])
def test_what_needs_a_gpu_says_so(name: str) -> None:
    reproduction, points = loaded(name)
    assert reproduction.needs.gpu
    assert "GPU" in reproduction.cost
    assert {p.resources["gpus"] for p in points} == {1}


def test_the_file_of_the_page_loads(tmp_path: Path) -> None:
    import re

    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    reproduction = load_reproduction(str(path))
    points = list(expand(reproduction.loaded_grid(catalog()), catalog()))
    assert all(
        meant(points, selector) for row in reproduction.rows for selector in ([row.select] if isinstance(row, Figure) else row.selectors)
    )
    assert [name for name in NAMES if name not in page] == []
