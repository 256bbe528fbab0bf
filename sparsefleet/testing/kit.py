"""Which checks a plugin must pass, and the two ways to run them."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from sparsefleet.plugin import Layer, Plugin, Pruner
from sparsefleet.testing import activation, common, connectivity, dataset, layer, model, pruner, rewirer, training
from sparsefleet.testing.expect import Nonconforming

Check = Callable[[Any], None]


def checks_for(plugin: Plugin) -> list[Check]:
    """The checks of ``plugin``'s family, those of all plugins first."""
    of_family: dict[str, tuple[Check, ...]] = {
        "pruner": (*pruner.CHECKS, training.prunes_to_the_count),
        "rewirer": (*rewirer.CHECKS, training.keeps_optimizer_slots),
        "layer": layer.CHECKS,
        "connectivity": connectivity.CHECKS,
        "activation": activation.CHECKS,
        "model": model.CHECKS,
        "dataset": dataset.CHECKS,
    }
    own = of_family[plugin.family]
    if isinstance(plugin, Pruner) and (plugin.needs_calibration or plugin.revives):
        own = ()  # they score whole models: the core's calibration tests are theirs
    if isinstance(plugin, Layer) and not layer.runs_here(plugin):
        own = (layer.names_what_it_needs,)
    return [*common.CHECKS, *own]


def check(plugin: Plugin) -> list[str]:
    """What is wrong with ``plugin``, one text per failed check; empty if it conforms."""
    problems = []
    for one in checks_for(plugin):
        try:
            one(plugin)
        except Nonconforming as problem:
            problems.append(f"{plugin.name}: {one.__name__}: {(one.__doc__ or '').strip()}\n  {problem}")
        except Exception:  # noqa: BLE001  a plugin that raises does not conform, whatever it raises
            problems.append(f"{plugin.name}: {one.__name__}: raised\n{traceback.format_exc()}")
    return problems


def conformance(*plugins: Plugin) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A pytest decorator: the test runs once per plugin and check, with a ``check`` argument to call.

    @conformance(MyPruner(), MyPruner(power=2))
    def test_my_pruner(check):
        check()
    """
    import pytest

    cases = [
        pytest.param(functools.partial(one, plugin), id=f"{plugin.name}{number or ''}-{one.__name__}")
        for number, plugin in enumerate(plugins)
        for one in checks_for(plugin)
    ]
    decorated: Callable[[Callable[..., None]], Callable[..., None]] = pytest.mark.parametrize("check", cases)
    return decorated


def check_all(plugins: Iterable[Plugin]) -> dict[str, list[str]]:
    """``check`` of each, by ``family/name``."""
    return {f"{plugin.family}/{plugin.name}": check(plugin) for plugin in plugins}
