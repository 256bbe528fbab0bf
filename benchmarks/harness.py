"""Runs the parts of a suite, each in a process of its own, and keeps their figures per machine.

A figure is kept under its part's id and its name. One that was not run this time keeps its older value with its date; a quick run never
replaces a full one. The file is written after every part, so that what is interrupted loses one part only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.figures import QUICK, Figure

RESULTS = Path(__file__).parent / "results"
SCHEMA = 1
LEAST_LIMIT_S = 600.0
"""Of a part; one that says it takes long has five times as much."""
_UNWIND_S = 30.0
_MARK = "BENCHMARK_PART"
"""In the environment of all that a part starts."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Some figures that are measured together.

    Attributes:
        function: ``module:function``, imported in the part's own process; takes a ``Run``, returns a list of figures.
        minutes: of a full run on two cores, about.
        daily: short and steady enough for every day; the others are for the night.
    """

    id: str
    title: str
    function: str
    minutes: float = 1.0
    daily: bool = False

    def is_asked(self, words: Sequence[str]) -> bool:
        """True if one of ``words`` is the id or part of id or title; without words always."""
        return not words or any(word.lower() in f"{self.id} {self.title}".lower() for word in words)


@dataclass(frozen=True)
class Found:
    """What a part handed back."""

    figures: list[Figure]
    raw: Any = None
    seconds: float = 0.0

    def rows(self, part: Part, about: Row) -> list[Row]:
        """As they are stored; ``about`` holds date, machine, commit and whether the run was quick."""
        shared = {"seconds": round(self.seconds, 1), **about}
        return [{"id": part.id, **asdict(figure), "kept": figure.kept, **shared} for figure in self.figures]


def run_part(part: Part, *, quick: bool) -> Found:
    """The figures of a part, from a process of its own, which ends with this one; a part that fails or does not end is one broken figure.

    Args:
        quick: puts every figure in doubt.
    """
    with tempfile.TemporaryDirectory(prefix="sparsefleet-benchmark-") as folder:
        answer = Path(folder) / "figures.json"
        begun, limit_s = time.monotonic(), max(LEAST_LIMIT_S, 5 * 60 * part.minutes)
        arguments = [part.function, part.id, part.title, str(answer), *(["--quick"] if quick else [])]
        code = run_module("benchmarks.part", arguments, {_MARK: folder}, limit_s)
        seconds = time.monotonic() - begun
        if code is None:
            _end_marked(folder)
        if code is None or not answer.exists():
            why = f"it had not ended after {limit_s:g} s and was stopped" if code is None else f"its process ended with {code}"
            return Found([Figure(part.title, "", note=why, broken=True)], seconds=seconds)
        found = json.loads(answer.read_text())
    figures = [Figure(**row) for row in found["figures"]]
    if quick:
        figures = [replace(figure, doubt=figure.doubt or QUICK) for figure in figures]
    return Found(figures, found["raw"], seconds)


def run_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> int | None:
    """How ``python -m module`` ended in a process of its own, which ends with this one; None if it took too long. Its stdout goes to stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=2, start_new_session=True, env={**os.environ, **(environment or {})}
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it unmounts, and stops what it started
        with suppress(subprocess.TimeoutExpired):
            process.wait(_UNWIND_S)
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_marked(mark: str) -> None:
    """Ends what a part started and left, in whatever session it is."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                process.kill()


def merge(older: Sequence[Row], newer: Sequence[Row]) -> list[Row]:
    """All figures there are: of each the newest value that counts; ``newer`` is what some parts said just now.

    An older value stays where the new one was not run, is broken, or comes from a quick run and the older one does not. Older rows without a
    value leave as soon as their part ran again.
    """
    ran = {row["id"] for row in newer}
    fresh = {_place(row): row for row in newer}
    for row in older:
        new = fresh.get(_place(row))
        if row["value"] is None:
            if row["id"] not in ran:
                fresh[_place(row)] = row
        elif new is None or new["value"] is None or (new["quick"] and not row["quick"]):
            fresh[_place(row)] = row
    return list(fresh.values())


def _place(row: Row) -> tuple[str, str]:
    return row["id"], row["what"]


class Book:
    """The results file of a suite on one machine.

    Args:
        parts: of the suite, which order the file.
        fingerprint: of the machine.
    """

    def __init__(self, suite: str, parts: Sequence[Part], fingerprint: dict[str, Any], folder: Path) -> None:
        self.suite, self.fingerprint = suite, fingerprint
        self.path = folder / f"{suite}-{fingerprint['id'].removeprefix('fp:')}.json"
        self._order = {part.id: place for place, part in enumerate(parts)}
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows: list[Row] = stored.get("figures", [])
        self._raw: dict[str, Any] = stored.get("raw") or {}

    def take(self, part: Part, rows: Sequence[Row], raw: Any) -> None:
        """Merges the figures of one part in and writes the file."""
        self.rows = sorted(merge(self.rows, rows), key=lambda row: self._order.get(row["id"], len(self._order)))
        if raw is not None and any(row in self.rows for row in rows):
            self._raw[part.id] = raw
        body = {
            "schema": SCHEMA,
            "suite": self.suite,
            "machine": self.fingerprint["id"],
            "figures": self.rows,
            "raw": self._raw,
            "fingerprint": self.fingerprint,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
        fresh.replace(self.path)


def results_folder(text: str) -> Path:
    """The folder that ``--results`` names, made if it is not there, so that nothing is measured in vain.

    Raises:
        argparse.ArgumentTypeError: it cannot be made or written.
    """
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror or error}") from error


def about(fingerprint: dict[str, Any], *, quick: bool) -> Row:
    """What every figure of this run says of where it comes from."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"date": now, "machine": fingerprint["id"], "commit": commit(), "quick": quick}


def commit() -> str | None:
    """The commit that is checked out, with ``+`` if files differ from it; None outside of a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(fingerprint: dict[str, Any]) -> str:
    """One line on the machine, for people."""
    cpu, now = fingerprint["stable"]["cpu"], fingerprint["now"]
    gpus = "".join(f", {gpu['name']}" for gpu in fingerprint["stable"].get("gpus", []))
    return f"{cpu['model']}, {len(cpu['allowed'])} of {cpu['logical']} cores{gpus}, load {now['load']}, {fingerprint['id']}"
