"""stdout is data, stderr is talk. Nothing is printed here that could steer a terminal."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.errors import InvalidGrid, SparsefleetError, VersionSkew
from sparsefleet.redact import redacted
from sparsefleet.report.plain import plain

if TYPE_CHECKING:
    from sparsefleet.cli.session import Session

RELAYED = ("grid", "plan", "status", "watch", "logs", "cancel", "resume", "compare")
"""Verbs that are about a home's sweeps: with the address of a cluster's dashboard they run where that home is."""


def data(lines: str | Iterable[str]) -> None:
    """Lines of the answer, to stdout."""
    told = [plain(line, lines=True) for line in ([lines] if isinstance(lines, str) else lines)]
    if told:
        click.echo("\n".join(told))


def emit(body: Mapping[str, Any]) -> None:
    """The answer as one JSON object, ASCII only, to stdout: what a list holds takes a line each, for ``grep`` and for speed."""
    parts = [f"{json.dumps(name)}: {_told(value)}" for name, value in {"schema": 1, **body}.items()]
    click.echo("{\n  " + ",\n  ".join(parts) + "\n}")


def _told(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n    " + ",\n    ".join(json.dumps(one, allow_nan=False, default=_jsonable) for one in value) + "\n  ]"
    return json.dumps(value, indent=2, allow_nan=False, default=_jsonable).replace("\n", "\n  ")


def say(text: object) -> None:
    """Talk, to stderr."""
    click.echo(plain(redacted(str(text)), lines=True), err=True)


def next_command(command: str) -> None:
    """The one command to run next; where this is said for somebody elsewhere, with the flag that leads back here."""
    flag = os.environ.get("SPARSEFLEET_RELAYED_FLAG", "") if command.split()[0] in (*RELAYED, "submit") else ""
    say(f"next: sparsefleet {command}{flag and ' '}{flag}")


def colourful(err: bool = True) -> bool:
    """True if the stream is a terminal that wants colour (https://no-color.org)."""
    stream = sys.stderr if err else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def report_error(error: Exception, debug: bool) -> int | None:
    """Prints one of our own errors and returns its exit code; None for any other exception."""
    if not isinstance(error, SparsefleetError):
        return None
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    problems = error.problems if isinstance(error, InvalidGrid) else [error.what]
    for problem in problems:
        click.echo(f"{_word('error')}: {plain(redacted(problem), lines=True)}", err=True)
    if isinstance(error, VersionSkew):
        _show_differences(error)
    for label, text in (("cause", error.cause), ("fix", error.fix)):
        if text:
            say(f"  {label + ':':<6} {text}")
    return error.exit_code


def _show_differences(error: VersionSkew) -> None:
    """What was submitted beside what each node has."""
    from sparsefleet.report.layout import Column, text_lines

    rows, found = list(error.differences), error.differences
    nodes = sorted({node for _, there in found.values() for node in there})
    columns = [Column("what", rows), Column("submitted", [found[what][0] for what in rows])]
    columns += [Column(node, [found[what][1].get(node, "the same") for what in rows]) for node in nodes]
    for line in text_lines(columns):
        say(f"  {line}")


def report_usage(error: click.ClickException) -> int:
    """Prints what is wrong with a command line; 2."""
    message = error.format_message()
    click.echo(f"{_word('error')}: {plain(message[:1].lower() + message[1:], lines=True)}", err=True)
    context = getattr(error, "ctx", None)
    if context is not None:
        say(f"  fix:   {context.command_path} --help")
    return 2


def report_bug(error: Exception, session: Session) -> int:
    """One sentence and where the traceback lies; with --debug the traceback itself."""
    text = "".join(traceback.format_exception(error))
    summary = plain(redacted(f"{type(error).__name__}: {error}")).strip()[:300]
    click.echo(f"{_word('error')}: this is a bug of sparsefleet or of what it rests on: {summary}", err=True)
    if session.debug:
        say(text.rstrip())
    else:
        say(f"  the traceback is in {_write_log(session, text)} (or run it again with --debug)")
    return 1


def _write_log(session: Session, text: str) -> Path | str:
    name = f"bug-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    try:
        folder = log_folder(session.made_home())
        path = folder / name
        path.write_text(redacted(f"{' '.join(map(repr, sys.argv))}\n{text}"), encoding="utf-8", errors="replace")
        path.chmod(0o600)
    except (OSError, SparsefleetError):  # the home itself may be what is wrong
        say(text.rstrip())
        return "the lines above"
    return path


def log_folder(home: Path) -> Path:
    """Where drivers and bugs are logged, created 0700."""
    folder = home / "logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _word(text: str) -> str:
    return click.style(text, fg="red", bold=True) if colourful() else text


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
