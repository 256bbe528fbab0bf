"""Which checks a plugin must pass, and the ways to run them in this process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.plugin import Plugin
from sparsefleet.testing import common, manners
from sparsefleet.testing.expect import Nonconforming, left_out_text
from sparsefleet.testing.families import Check as Check, family_checks
from sparsefleet.testing.guard import judge


class Outcome(NamedTuple):
    """What one check of a plugin gave."""

    check: str
    rule: str
    """What the check asks, in a sentence."""
    problem: str
    """What was expected, what came and how to mend it; empty: passed."""
    seconds: float
    stopped: bool = False
    """What the check ran did not come to its end."""


def checks_for(plugin: Plugin) -> list[Check]:
    """The checks of ``plugin``'s family, those of all plugins first."""
    return [*common.CHECKS, *family_checks(plugin)]


def asked_if_it_runs(checks: Iterable[Check]) -> list[Check]:
    """Those of ``checks`` that are left out where ``manners.runs`` is stopped."""
    return [one for one in checks if one not in (manners.runs, *common.UNUSED)]


def rule_of(check: Check) -> str:
    """The first paragraph of a check's docstring, on one line."""
    return " ".join((check.__doc__ or "").strip().partition("\n\n")[0].split())


def run_check(check: Check, plugin: Plugin, timeout_s: float | None = None) -> Outcome:
    """Runs one check, guarded (``guard.judge``)."""
    began = time.perf_counter()
    verdict = judge(check, plugin, timeout_s)
    return Outcome(check.__name__, rule_of(check), "\n  ".join(verdict.problems), time.perf_counter() - began, verdict.stopped)


def run_checks(plugin: Plugin, *, timeout_s: float | None = None) -> Iterator[Outcome]:
    """Every check of ``plugin``, one after the other; where it does not run at all, only those that do not use it.

    Args:
        timeout_s: seconds that each check may take; default ``SPARSEFLEET_CHECK_TIMEOUT``, else 60.
    """
    checks = checks_for(plugin)
    use = asked_if_it_runs(checks)
    first = run_check(manners.runs, plugin, timeout_s)
    yield first._replace(problem=first.problem + left_out_text(len(use))) if first.stopped else first
    for one in checks[1:]:
        if not (first.stopped and one in use):
            yield run_check(one, plugin, timeout_s)


def check(plugin: Plugin, *, timeout_s: float | None = None) -> list[str]:
    """What is wrong with ``plugin``, one text per failed check; empty if it conforms."""
    return [text_of(plugin, outcome) for outcome in run_checks(plugin, timeout_s=timeout_s) if outcome.problem]


def text_of(plugin: Plugin, outcome: Outcome) -> str:
    """A failed check as it is told."""
    return f"{plugin.name}: {outcome.check}: {outcome.rule}\n  {outcome.problem}"


def conformance(*plugins: Plugin, except_for: Mapping[str, str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A pytest decorator: the test runs once per plugin and check, with a ``check`` argument to call.

    @conformance(MyPruner(), MyPruner(power=2))
    def test_my_pruner(check):
        check()

    Args:
        except_for: checks that are expected to fail, by name, with the reason why they do not apply; one that passes fails the test.

    Raises:
        UserError: no check of these plugins has a name in ``except_for``.
    """
    import pytest

    excused = dict(except_for or {})
    known = {one.__name__ for plugin in plugins for one in checks_for(plugin)}
    for name in excused.keys() - known:
        raise UserError(f"no check of these plugins is called {name!r}", fix=did_you_mean(name, sorted(known)))
    cases = []
    for number, plugin in enumerate(plugins):
        checks = checks_for(plugin)
        runs, use = functools.cache(functools.partial(run_check, manners.runs, plugin)), asked_if_it_runs(checks)
        cases += [
            pytest.param(
                functools.partial(_run_or_raise, one, plugin, runs if one in use else None, excused.get(one.__name__)),
                id=f"{plugin.name}{number or ''}-{one.__name__}",
            )
            for one in checks
        ]
    decorated: Callable[[Callable[..., None]], Callable[..., None]] = pytest.mark.parametrize("check", cases)
    return decorated


def _run_or_raise(one: Check, plugin: Plugin, runs: Callable[[], Outcome] | None, excuse: str | None) -> None:
    """Raises what the check finds; skips one that uses a plugin that does not run, and expects an excused one to fail."""
    import pytest

    __tracebackhide__ = True
    if runs is not None and runs().stopped:
        pytest.skip(f"{plugin.name} does not run at all: see {manners.runs.__name__}")
    outcome = run_check(one, plugin)
    if excuse is not None and outcome.problem:
        pytest.xfail(excuse)
    if excuse is not None:
        raise Nonconforming(f"{plugin.name}: {one.__name__}: it passes, so except_for need not excuse it any longer ({excuse})")
    if outcome.problem:
        raise Nonconforming(text_of(plugin, outcome))


def check_all(plugins: Iterable[Plugin]) -> dict[str, list[str]]:
    """``check`` of each, by ``family/name``."""
    return {f"{plugin.family}/{plugin.name}": check(plugin) for plugin in plugins}
