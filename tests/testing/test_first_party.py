"""Every plugin that the registry finds in this installation passes the kit; no list of names here."""

import pytest

from sparsefleet.plugin import Plugin
from sparsefleet.registry import Registry, catalog
from sparsefleet.testing.imports import prime
from sparsefleet.testing.kit import checks_for, run_check, text_of

_ENTRIES = [entry for entry in catalog().entries if entry.distribution == "sparsefleet" and entry.family != "hooks"]
# A plugin that cannot be built without a parameter is checked in its own test.
_BUILDABLE = [entry for entry in _ENTRIES if not entry.schema.get("required")]


@pytest.fixture(scope="module")
def _imports_seen():
    """Every module is imported in one child process, not each in its own."""
    prime(entry.module for entry in _ENTRIES)


def _build(family: str, name: str) -> Plugin:
    return Registry(catalog()).plugin_class(family, name)()


def _problems(entry, heavy: bool) -> list[str]:
    plugin = _build(entry.family, entry.name)
    chosen = [one for one in checks_for(plugin) if getattr(one, "heavy", False) is heavy]
    return [text_of(plugin, outcome) for outcome in (run_check(one, plugin) for one in chosen) if outcome.problem]


def test_there_are_plugins_of_every_family():
    assert {entry.family for entry in _ENTRIES} == {"pruner", "rewirer", "layer", "connectivity", "activation", "model", "dataset"}
    assert [entry.name for entry in _ENTRIES if entry.state != "ok"] == []


@pytest.mark.usefixtures("_imports_seen")
@pytest.mark.parametrize("entry", _BUILDABLE, ids=lambda entry: f"{entry.family}-{entry.name}")
def test_conforms(entry):
    problems = _problems(entry, heavy=False)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("entry", _BUILDABLE, ids=lambda entry: f"{entry.family}-{entry.name}")
def test_conforms_to_the_heavy_checks(entry):
    problems = _problems(entry, heavy=True)
    assert not problems, "\n".join(problems)
