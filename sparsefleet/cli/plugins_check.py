"""``plugins check``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.session import Session, json_option, leave, verb
from sparsefleet.cli.talk import data, emit, next_command, say

if TYPE_CHECKING:
    from sparsefleet.catalogue import Entry
    from sparsefleet.testing.isolated import Result

_BROKEN = 3
_LONGEST_LINE = 1_000


def _check(session: Session, what: str, given: tuple[str, ...], only: tuple[str, ...], timeout: float | None, as_json: bool) -> None:
    """Check a plugin against the contract, in a process of its own that may hang or crash.

    WHAT is an installed plugin (FAMILY/NAME where two families share a name), a one-file plugin such as ./my_pruner.py, or the folder of a
    project with a pyproject.toml, installed or not. The exit code is 3 if something is wrong.
    """
    from sparsefleet.testing.deadline import time_limit
    from sparsefleet.testing.targets import entries_of, installs

    session.settings  # noqa: B018  exports the cache's place
    limit, install = time_limit(timeout), installs(what)
    entries = [entry for entry in entries_of(what) if entry.family != "hooks"]
    broken = [entry for entry in entries if entry.state != "ok"]
    usable = [entry for entry in entries if entry.state == "ok"]
    wanted = _parameters(given, usable)
    reports = [(entry, list(_results(entry, wanted, only, limit))) for entry in usable]
    _refuse_unknown_checks(only, reports)
    ok = not broken and bool(entries) and not any(result.problem for _, results in reports for result in results)
    if as_json:
        emit({"ok": ok, "plugins": [_broken_json(entry) for entry in broken] + [_json(entry, results) for entry, results in reports]})
    else:
        _tell(entries, broken, reports)
    if not ok:
        next_command(shlex.join(["plugins", "check", what, *(part for item in given for part in ("--set", item)), *_again(reports)]))
        leave(_BROKEN)
    if install:
        say(f"next: {install}")
    elif what.endswith(".py"):
        next_command(shlex.join(["submit", "grid", "grid.yaml", "--plugin", what]))
    else:
        next_command(f"plugins show {usable[0].family}/{usable[0].name}")


def _parameters(given: Iterable[str], entries: list[Entry]) -> dict[str, Any]:
    """``--set`` by name: JSON, else text."""
    from sparsefleet.errors import UserError, did_you_mean

    found: dict[str, Any] = {}
    known = {key for entry in entries for key in entry.schema.get("properties", {})}
    for item in given:
        key, sign, text = item.partition("=")
        if not sign:
            raise UserError(f"--set {item!r} is not key=value", fix="--set power=2")
        if entries and key not in known:
            raise UserError(f"no plugin here has the parameter {key!r}", fix=did_you_mean(key, sorted(known)))
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def _results(entry: Entry, wanted: dict[str, Any], only: tuple[str, ...], limit: float) -> Iterable[Result]:
    from sparsefleet.catalogue import Catalog
    from sparsefleet.testing.isolated import REFUSED, STARTING, STARTING_RULE, Result, Target, check_isolated

    own = {key: value for key, value in wanted.items() if key in entry.schema.get("properties", {})}
    refused = Catalog([entry]).complete(entry.family, entry.name, own)[1] if own else []
    _refuse([message for key, message in refused if key in own or key.partition(".")[0] in own])
    lacking = [key for key in entry.schema.get("required", []) if key not in own]
    if lacking:
        settings = " ".join(f"--set {key}={_sample(entry, key)}" for key in lacking)
        yield Result(STARTING, STARTING_RULE, f"it cannot be built without {', '.join(lacking)}\n  mend:     {settings}", 0.0)
        return
    say(f"{entry.family} {entry.name}: checking")
    target = Target(entry.family, entry.name, entry.module, own)
    for result in check_isolated(target, timeout_s=limit, only=only):
        if own and result.check == STARTING and result.problem.startswith(REFUSED):
            _refuse([result.problem.removeprefix(REFUSED)])
        say(f"  {result.check:<34} {'FAIL' if result.problem else 'ok':<4} {result.seconds:6.2f} s")
        yield result


def _refuse(problems: list[str]) -> None:
    """Values that the user has set and the plugin's own bounds exclude: no fault of the plugin."""
    from sparsefleet.errors import UserError

    if problems:
        raise UserError(f"--set: {'; '.join(problems)}")


def _sample(entry: Entry, key: str) -> str:
    """A value for a required parameter, from its schema's examples, or its type."""
    prop = entry.schema.get("properties", {}).get(key, {})
    return json.dumps(prop["examples"][0]) if prop.get("examples") else str(prop.get("type", "value")).upper()


def _check_names() -> list[str]:
    from sparsefleet.testing.common import CHECKS
    from sparsefleet.testing.families import CHECKS_BY_KIND

    return sorted({one.__name__ for checks in (CHECKS, *CHECKS_BY_KIND.values()) for one in checks})


def _refuse_unknown_checks(only: tuple[str, ...], reports: list[tuple[Entry, list[Result]]]) -> None:
    from sparsefleet.errors import UserError, did_you_mean
    from sparsefleet.testing.isolated import STARTING

    ran = {result.check for _, results in reports for result in results}
    started = any(result.check == STARTING and not result.problem for _, results in reports for result in results)
    unknown = [name for name in only if name not in ran]
    if unknown and started:
        raise UserError(f"no check of this family is called {unknown[0]!r}", fix=did_you_mean(unknown[0], _check_names()))


def _tell(entries: list[Entry], broken: list[Entry], reports: list[tuple[Entry, list[Result]]]) -> None:
    from sparsefleet.report.layout import Column, text_lines

    if not entries:
        data("it offers no plugin")
    for entry in broken:
        data(f"{entry.distribution} {entry.version}: {entry.name} is {entry.state}: {entry.reason}")
    seen = sys.stdout.isatty() and sys.stderr.isatty()  # every check has just been told there
    for entry, results in reports:
        failed = [result for result in results if result.problem]
        title = f"{entry.family} {entry.name}, {entry.distribution} {entry.version}"
        if seen and not failed:
            data(f"{title}: {len(results)} checks passed in {sum(result.seconds for result in results):.1f} s")
            data(f"  will go: {text}" for text in entry.facts.get("deprecated", []))
            continue
        data(title)
        columns = (
            Column("check", [result.check for result in results]),
            Column("", ["FAIL" if result.problem else "ok" for result in results]),
            Column("seconds", [f"{result.seconds:.2f}" for result in results], right=True),
        )
        data("  " + line for line in text_lines(columns))
        data(f"  will go: {text}" for text in entry.facts.get("deprecated", []))
        for result in failed:
            data(f"{result.check}: {result.rule}")
            data("  " + _cut(line.removeprefix("  ")) for line in result.problem.split("\n"))


def _cut(line: str) -> str:
    """What a reader wants of a line; ``--json`` has all of it."""
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({len(line):,} characters)"


def _json(entry: Entry, results: list[Result]) -> dict[str, Any]:
    checks = [{"check": r.check, "rule": r.rule, "ok": not r.problem, "problem": r.problem, "seconds": r.seconds} for r in results]
    return {**_named(entry), "ok": all(check["ok"] for check in checks), "reason": "", "checks": checks}


def _broken_json(entry: Entry) -> dict[str, Any]:
    return {**_named(entry), "ok": False, "reason": f"{entry.state}: {entry.reason}", "checks": []}


def _named(entry: Entry) -> dict[str, Any]:
    return {
        "family": entry.family,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.module,
        "deprecated": entry.facts.get("deprecated", []),
    }


def _again(reports: list[tuple[Entry, list[Result]]]) -> list[str]:
    """The options that run the first check that failed, alone."""
    from sparsefleet.testing.isolated import STARTING

    failed = list(dict.fromkeys(r.check for _, results in reports for r in results if r.problem and r.check != STARTING))
    return ["--only", failed[0]] if failed else []


_set = click.option(
    "--set", "given", metavar="KEY=VALUE", multiple=True, help="A hyper-parameter, as JSON or text; the others have defaults."
)
_only = click.option("--only", metavar="CHECK", multiple=True, help="Only this check; may be given several times.")
_timeout = click.option(
    "--timeout", metavar="SECONDS", type=float, help="How long each check may take; default: SPARSEFLEET_CHECK_TIMEOUT, else 60."
)
check = verb(
    "check",
    "plugins check magnitude",
    "plugins check ./my_pruner.py --set power=2 --only is_deterministic",
    short="Check a plugin against the contract.",
)(click.argument("what", metavar="WHAT")(_set(_only(_timeout(json_option(_check))))))
