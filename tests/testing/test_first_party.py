"""Every plugin that the registry finds in this installation passes the kit; no list of names here."""

import pytest

from sparsefleet.plugin import Plugin
from sparsefleet.registry import Registry, catalog
from sparsefleet.testing import check

_ENTRIES = [entry for entry in catalog().entries if entry.distribution == "sparsefleet" and entry.family != "hooks"]
# A plugin that cannot be built without a parameter is checked in its own test.
_BUILDABLE = [entry for entry in _ENTRIES if not entry.schema.get("required")]


def _build(family: str, name: str) -> Plugin:
    return Registry(catalog()).plugin_class(family, name)()


def test_there_are_plugins_of_every_family():
    assert {entry.family for entry in _ENTRIES} == {"pruner", "rewirer", "layer", "connectivity", "activation", "model", "dataset"}
    assert [entry.name for entry in _ENTRIES if entry.state != "ok"] == []


@pytest.mark.parametrize("entry", _BUILDABLE, ids=lambda entry: f"{entry.family}-{entry.name}")
def test_conforms(entry):
    problems = check(_build(entry.family, entry.name))
    assert not problems, "\n".join(problems)
