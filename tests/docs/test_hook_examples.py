"""The examples of docs/hooks.md are one module that works: every hook is implemented, found and called, and does what it shows."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparsefleet import hookspecs
from sparsefleet.cli.app import cli
from sparsefleet.registry import Registry, catalog
from sparsefleet.testing import checks_for
from sparsefleet.trial.run import run_trial

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "docs" / "hook_examples.py").read_text()
HOOKS = [name for name in vars(hookspecs) if name.startswith("sparsefleet_")]


@pytest.fixture
def installed(plugin_distribution):
    """The examples as somebody's distribution."""
    plugin_distribution("sf-examples", {"sf_examples": SOURCE})
    return catalog()


def test_every_hook_has_an_example_on_its_page():
    shown = [node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)]
    assert shown == HOOKS
    page = (ROOT / "docs" / "hooks.md").read_text()
    for name in HOOKS:
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"@hookimpl\ndef {name}(" in section


@pytest.mark.parametrize("name", HOOKS)
def test_every_argument_of_a_hook_is_explained(name):
    told = inspect.getdoc(getattr(hookspecs, name)) or ""
    assert [argument for argument in inspect.signature(getattr(hookspecs, name)).parameters if f"\n    {argument}: " not in told] == []


def test_the_registered_classes_conform(installed):
    entries = [entry for entry in installed.entries if entry.distribution == "sf-examples" and entry.family != "hooks"]
    assert sorted(entry.family for entry in entries) == sorted(hookspecs.REGISTRATION_HOOKS.values())
    for entry in entries:
        plugin = Registry(installed).plugin_class(entry.family, entry.name)()
        for one in checks_for(plugin):
            if not getattr(one, "heavy", False):
                one(plugin)


def test_the_observing_hooks_observe_a_trial(installed, digits_request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = run_trial(digits_request(seed=3))
    assert record.state == "SUCCEEDED"
    assert json.loads((tmp_path / "trials.jsonl").read_text()) == {"seed": 3, "state": "SUCCEEDED"}
    assert len(record.curves["mean_output"].values) == 2  # epochs
    assert not (tmp_path / "last-error.txt").exists()


BREAKS = """
    from sparsefleet import DataInfo, Dataset, hookimpl

    class Breaks(Dataset):
        '''Raises.'''
        name = "breaks"
        info = DataInfo("classification", (4,), 2)

        def files(self, root):
            return []

        def load(self, root, split):
            raise KeyError("my own bug")

    @hookimpl
    def sparsefleet_datasets():
        return [Breaks]
"""


def test_the_hook_of_errors_is_told_what_a_trial_raised(plugin_distribution, installed, digits_request, tmp_path, monkeypatch):
    plugin_distribution("sf-breaks", {"sf_breaks": BREAKS})
    monkeypatch.chdir(tmp_path)
    assert run_trial(digits_request(dataset={"name": "breaks"}, seed=4)).state == "PLUGIN_ERROR"
    assert (tmp_path / "last-error.txt").read_text() == "seed 4: KeyError: 'my own bug'\n"


def test_doctor_asks(installed):
    checks = {c["what"]: c for c in json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["checks"]}
    assert checks["room for my temporary files"]["found"] == "checked by sf-examples"
