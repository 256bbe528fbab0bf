"""What will go is warned of where authors look, with the release that removes it. The table is empty; an artificial entry shows that it works."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from sparsefleet_plugins.pruning.magnitude import Magnitude

from sparsefleet import Pruner, Rewirer, deprecated, hookimpl
from sparsefleet.cli.app import cli
from sparsefleet.deprecated import Deprecation, implemented_by, used_by
from sparsefleet.hookspecs import hookspec
from sparsefleet.registry import Registry, catalog

_FACT = Deprecation("Pruner.needs_grad", "0.2", "0.3", "declare reads = ('grad',)")
_METHOD = Deprecation("Rewirer.drop_score", "0.2", "0.3", "override score")
_HOOK = Deprecation("sparsefleet_measure", "0.2", "0.3", "implement sparsefleet_observe")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(deprecated, "DEPRECATED", (_FACT, _METHOD, _HOOK))


class Old(Pruner):
    """Declares what will go."""

    needs_grad = True


class Older(Old):
    """Inherits it from a class of its author."""


class OldRewirer(Rewirer):
    """Overrides what will go."""

    def drop_score(self, conn):
        return conn.weight.abs()


def test_nothing_goes_without_a_release_that_warns():
    with pytest.raises(ValueError, match=r"warns in 0\.10 of what goes in 0\.10"):
        Deprecation("Pruner.needs_grad", "0.10", "0.10", "nothing")
    Deprecation("Pruner.needs_grad", "0.9", "0.10", "nothing")


def test_who_uses_what_will_go(table):
    said = ["Pruner.needs_grad goes in sparsefleet 0.3: declare reads = ('grad',)"]
    assert used_by(Old) == used_by(Older) == said
    assert used_by(OldRewirer) == ["Rewirer.drop_score goes in sparsefleet 0.3: override score"]
    assert used_by(Magnitude) == []


def test_who_implements_what_will_go(table):
    module = SimpleNamespace(sparsefleet_measure=hookimpl(lambda trial: {}), sparsefleet_doctor=list)
    assert implemented_by(module) == ["sparsefleet_measure goes in sparsefleet 0.3: implement sparsefleet_observe"]


def test_a_hook_that_will_go_warns_who_implements_it():
    """How a hook is marked: pluggy warns when an implementation is registered."""
    import pluggy

    def sparsefleet_measure(trial):
        """Goes."""

    specs = SimpleNamespace(sparsefleet_measure=hookspec(warn_on_impl=DeprecationWarning(str(_HOOK)))(sparsefleet_measure))
    manager = pluggy.PluginManager("sparsefleet")
    manager.add_hookspecs(specs)
    with pytest.warns(DeprecationWarning, match=r"goes in sparsefleet 0\.3"):
        manager.register(SimpleNamespace(sparsefleet_measure=hookimpl(lambda trial: {})))


OUTSIDE = """
    from sparsefleet import Pruner, hookimpl

    class Mine(Pruner):
        '''Declares what will go.'''
        name = "mine"
        needs_grad = True

        def score(self, conn):
            return conn.grad.abs()

    @hookimpl
    def sparsefleet_pruners():
        return [Mine]
"""


def test_listings_tell(plugin_distribution, monkeypatch):
    """The catalogue is made in a process of its own, so the entry is planted in its answer."""
    plugin_distribution("sf-mine", {"sf_mine": OUTSIDE})
    assert catalog().get("pruner", "mine").facts["deprecated"] == []
    cls = Registry(catalog()).plugin_class("pruner", "mine")
    monkeypatch.setattr(deprecated, "DEPRECATED", (_FACT,))
    found = catalog()
    found.get("pruner", "mine").facts["deprecated"] = used_by(cls)
    monkeypatch.setattr("sparsefleet.registry._kept", [found])
    result = CliRunner().invoke(cli, ["plugins", "list", "--family", "pruner"])
    assert "pruner mine of sf-mine 1.0: Pruner.needs_grad goes in sparsefleet 0.3" in result.stderr
    listed = json.loads(CliRunner().invoke(cli, ["plugins", "list", "--family", "pruner", "--json"]).stdout)["plugins"]
    assert {p["name"]: p["deprecated"] for p in listed if p["deprecated"]} == {"mine": used_by(cls)}
    assert "deprecated" in CliRunner().invoke(cli, ["plugins", "show", "mine"]).stdout
    checked = CliRunner().invoke(cli, ["plugins", "check", "pruner/mine", "--only", "has_a_name"])
    assert checked.exit_code == 0
    assert "will go: Pruner.needs_grad goes in sparsefleet 0.3" in checked.stdout


DOCTOR = """
    from sparsefleet import hookimpl

    @hookimpl
    def sparsefleet_doctor():
        {body}
"""


def test_doctor_asks_plugins_for_their_needs(plugin_distribution):
    plugin_distribution("sf-needs", {"sf_needs": DOCTOR.format(body="return [('my data', False, 'fetch it'), ('my library', True, '')]")})
    plugin_distribution("sf-raises", {"sf_raises": DOCTOR.format(body="raise ValueError('boom')")})
    checks = {c["what"]: c for c in json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)["checks"]}
    assert checks["my data"] == {"what": "my data", "state": "fail", "found": "checked by sf-needs", "fix": "fetch it"}
    assert checks["my library"]["state"] == "ok"
    assert "boom" in checks["sf-raises"]["found"]
