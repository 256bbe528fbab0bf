"""Every example is a project as an outsider's: installed in a folder of its own it is found, conforms, and runs in a grid."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.grid.expand import expand
from sparsefleet.grid.load import load_grid
from sparsefleet.plugin import FAMILIES
from sparsefleet.registry import catalog
from sparsefleet.trial.identity import plugins_of

EXAMPLES = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "examples").glob("*/pyproject.toml"))
TARGETS = {"pruner": 20, "rewirer": 20, "connectivity": 20, "activation": 25, "model": 25, "dataset": 30, "layer": 40}
_named = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)


def command(*arguments: str, cwd: Path, site: Path | None = None, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment in ``cwd``, with what is installed in ``site``."""
    path = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_there_is_one_of_each_family(monkeypatch):
    modules = [module for example in EXAMPLES for module in example.glob("sf_*.py")]
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", os.pathsep.join(map(str, modules)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    entries = catalog().entries
    own = [entry for entry in entries if entry.distribution in {module.name for module in modules}]
    assert [(entry.name, entry.reason) for entry in own if entry.state != "ok"] == []  # a name that is shipped would be a conflict
    assert len(own) == len(EXAMPLES)
    assert {entry.family for entry in own} == set(FAMILIES)


@_named
def test_its_grid_can_be_planned(example):
    (module,) = example.glob("sf_*.py")
    done = command("sparsefleet.cli", "plan", "grid.yaml", "--plugin", str(module), "--json", cwd=example)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@_named
def test_it_is_installed_found_and_right(example, tmp_path):
    site = tmp_path / "site"
    pip = ("pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site), str(example))
    done = command(*pip, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command("sparsefleet.cli", "plugins", "list", "--json", cwd=tmp_path, site=site)
    assert example.name in {entry["distribution"] for entry in json.loads(done.stdout)["plugins"]}
    done = command("pytest", "-q", "-p", "no:cacheprovider", str(example), cwd=tmp_path, site=site)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@_named
def test_a_trial_of_its_grid_succeeds(example, monkeypatch):
    (module,) = example.glob("sf_*.py")
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(module))
    monkeypatch.setattr(sys, "path", list(sys.path))
    plugins = catalog()
    own = {entry.name for entry in plugins.entries if entry.distribution == module.name}
    points = enumerate(expand(load_grid(str(example / "grid.yaml"), catalog=plugins), plugins))
    point = next(n for n, point in points if own & {ref.name for _, ref in plugins_of(point.spec)})
    done = command("sparsefleet.cli", "run", "grid.yaml", "--plugin", str(module), "--point", str(point), "--json", cwd=example)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["record"]
    assert record["state"] == "SUCCEEDED"
    assert own & {used["name"] for used in record["plugins"]}
