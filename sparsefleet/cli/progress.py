"""What a sweep is doing, as it is shown: one state, fed by a driver's events or by the ledger, and two ways to print it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sparsefleet.cli.talk import colourful, log_folder, say
from sparsefleet.home import write_private
from sparsefleet.report.plain import plain

_LINE_EVERY_S = 5.0
_SAVE_EVERY_S = 1.0
_MAX_RUNNING = 8
_MAX_KEPT = 50
_ETA = re.compile(r", about [^;]* left")


@dataclass
class View:
    """How a sweep stands now.

    Attributes:
        running: by trial key: what it is, its step and its loss.
        failures: one line per trial that failed or diverged, newest last.
        finished: one line per row whose trials have all ended, and per phase that began, newest last.
        phase: a word on what follows the trials: measuring, uploading.
        eta_s: seconds until the phase ends, as its driver estimates them.
        nodes: where trials run, and how busy each node is; ``Event`` of kind ``fleet`` says what stands in one.
        waiting: why trials wait: ``{why, n}``.
    """

    sweep: str
    done: int = 0
    total: int = 0
    failed: int = 0
    diverged: int = 0
    cancelled: int = 0
    cached: int = 0
    state: str = "RUNNING"
    running: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    phase: str = ""
    eta_s: float | None = None
    nodes: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    _first: tuple[float, int] | None = None

    def count(self, figures: Mapping[str, int], cached: int = 0) -> None:
        """Takes the totals of the ledger."""
        self.done, self.total, self.failed = figures["done"], figures["total"], figures["failed"]
        self.diverged, self.cancelled = figures["diverged"], figures["cancelled"]
        self.cached = cached
        self._begin()

    def _begin(self) -> None:
        if self._first is None:
            self._first = (time.monotonic(), self.done)

    @property
    def left_s(self) -> float | None:
        """Seconds until the last trial: what the driver says, else by the pace so far; None before the second trial has ended."""
        if self.eta_s is not None:
            return self.eta_s
        if self._first is None:
            return None
        since, done = time.monotonic() - self._first[0], self.done - self._first[1]
        return since / done * (self.total - self.done) if done >= 2 else None

    def headline(self) -> str:
        """``12/96 done, 2 running, 1 failed, about 2 min left``."""
        parts = [f"{self.done}/{self.total} done"]
        if self.cached:
            parts.append(f"{self.cached} of them from before")
        if self.running:
            parts.append(f"{len(self.running)} running")
        parts += [f"{n} {word}" for n, word in ((self.diverged, "diverged"), (self.failed, "failed"), (self.cancelled, "cancelled")) if n]
        left = self.left_s
        if left is not None and (self.done < self.total or self.phase):
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts) + (f"; {self.phase}" if self.phase else "")

    def fleet_lines(self) -> list[str]:
        """``node-1: 2 of 2 slots busy, 2 of 2 cpus``, and why trials wait."""
        lines = []
        for node in self.nodes[:_MAX_RUNNING]:
            gpus = f", {node['gpus_used']:g} of {node['gpus']:g} gpus" if node.get("gpus") else ""
            state = f" {node['state'].upper()}" if node.get("state", "alive") != "alive" else ""
            busy = f"{node.get('busy', 0)} of {node.get('slots', 0)} slots busy"
            lines.append(f"{node['node']}:{state} {busy}, {node.get('cpus_used', 0):g} of {node.get('cpus', 0):g} cpus{gpus}")
        if len(self.nodes) > _MAX_RUNNING:
            lines.append(f"and {len(self.nodes) - _MAX_RUNNING} more nodes")
        return lines + [
            f"{one['n']} wait{'s' if one['n'] == 1 else ''}: {one['why']}" if one["n"] else str(one["why"])
            for one in self.waiting[:_MAX_RUNNING]
        ]

    def running_lines(self) -> list[str]:
        """``digits mlp set csr 0.1 seed 0   step 120/400   loss 0.31``."""
        lines = []
        for item in list(self.running.values())[:_MAX_RUNNING]:
            parts = [str(item.get("what", "?"))]
            if item.get("total_steps"):
                parts.append(f"step {item['step']:,}/{item['total_steps']:,}")
            if isinstance(item.get("loss"), (int, float)):
                parts.append(f"loss {item['loss']:.4g}")
            lines.append("   ".join(parts))
        if len(self.running) > _MAX_RUNNING:
            lines.append(f"and {len(self.running) - _MAX_RUNNING} more")
        return lines

    def to_json(self) -> dict[str, Any]:
        """What ``watch`` reads of a driver's view: the part that is not in the ledger."""
        return {
            **{name: getattr(self, name) for name in ("running", "phase", "eta_s", "nodes", "waiting")},
            "finished": self.finished[-_MAX_KEPT:],
            "n_finished": len(self.finished),
        }

    def take_json(self, live: Mapping[str, Any]) -> None:
        """The same in a process that watches."""
        self.phase, self.eta_s = str(live.get("phase", "")), live.get("eta_s")
        self.nodes, self.waiting = live.get("nodes", []), live.get("waiting", [])
        new = live.get("n_finished", 0) - len(self.finished)
        if new > 0:
            kept = list(live.get("finished", []))[-new:]
            self.finished += ["…"] * (new - len(kept)) + kept  # more than a snapshot holds


def duration(seconds: float) -> str:
    """``45 s``, ``3 min``, ``5 h 40 min``, ``19 days``."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 1440)} days"


class Screen(Protocol):
    """Shows a view, again and again."""

    def show(self, view: View, *, urgent: bool = False) -> None:
        """Bring what is shown up to date."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """One line per change, and no more than one in some seconds; what is urgent comes at once."""

    def __init__(self, every_s: float = _LINE_EVERY_S) -> None:
        self._every_s = every_s
        self._last = -every_s
        self._said = ""
        self._failures = self._finished = 0

    def show(self, view: View, *, urgent: bool = False) -> None:
        """Prints what is new."""
        for line in (*view.finished[self._finished :], *view.failures[self._failures :]):
            say(line)
        self._failures, self._finished = len(view.failures), len(view.finished)
        line = f"{view.sweep}: {view.headline()}"
        counts = _ETA.sub("", line)  # that alone is no news
        if counts == self._said or not (urgent or time.monotonic() - self._last >= self._every_s):
            return
        self._said, self._last = counts, time.monotonic()
        say(line)

    def close(self) -> None:
        """Nothing to leave."""


class Live:
    """The view in place, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(stderr=True, no_color=not colourful(), highlight=False)
        self._live = RichLive(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()
        self._failures = self._finished = 0

    def show(self, view: View, *, urgent: bool = False) -> None:
        """Redraws."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        for line in (*view.finished[self._finished :], *view.failures[self._failures :]):
            self._console.print(Text(plain(line)))
        self._failures, self._finished = len(view.failures), len(view.finished)
        bar = ProgressBar(total=max(view.total, 1), completed=view.done, width=40)
        lines = [Text(plain(f"  {line}"), overflow="ellipsis", no_wrap=True) for line in (*view.running_lines(), *view.fleet_lines())]
        self._live.update(Group(Text(plain(f"{view.sweep}  {view.headline()}")), bar, *lines))

    def close(self) -> None:
        """Removes the drawing."""
        self._live.stop()


def screen() -> Screen:
    """In place on a terminal, lines elsewhere."""
    import os
    import sys

    return Live() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Snapshot:
    """A driver's view on disk, for ``watch``; replaced whole, at most once a second."""

    def __init__(self, home: Path, sweep: str) -> None:
        self._path = log_folder(home) / f"{sweep}.progress.json"
        self._last = -_SAVE_EVERY_S

    def save(self, view: View) -> None:
        """Writes it if the last one is old enough."""
        if time.monotonic() - self._last < _SAVE_EVERY_S:
            return
        self._last = time.monotonic()
        write_private(self._path, json.dumps(view.to_json(), default=str))

    def load(self) -> dict[str, Any]:
        """The last one, or nothing."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):  # never written
            return {}
        return found if isinstance(found, dict) else {}

    def remove(self) -> None:
        """At the driver's end."""
        self._path.unlink(missing_ok=True)
