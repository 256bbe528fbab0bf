"""Runs one check so that nothing a plugin does can end the process, outlast its time or spoil the checks after it, and names what it did."""

from __future__ import annotations

import functools
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sparsefleet.errors import UserError
from sparsefleet.plugin import Plugin
from sparsefleet.testing.deadline import TIMEOUT_VARIABLE, Alarm, TooLong, deadline, time_limit
from sparsefleet.testing.expect import Nonconforming, problem_text
from sparsefleet.testing.surroundings import Generators, Surroundings

_NO_END = "never end the process: raise sparsefleet.UserError or PluginError with a sentence for the user"


class _Left(BaseException):
    """The plugin tried to end the process."""


@dataclass(frozen=True)
class Verdict:
    """What one check found; no problems: the plugin passed it.

    Attributes:
        stopped: the check did not come to its end, as what it ran raised, left or outlasted its time; or it found a fault.
    """

    problems: tuple[str, ...]
    stopped: bool = False


def judge(check: Callable[[Any], None], plugin: Plugin, timeout_s: float | None = None) -> Verdict:
    """Runs ``check(plugin)``; afterwards shared state and the global generators are as before.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; one that the plugin raises is a problem.
    """
    limit = time_limit(timeout_s)
    own = type(plugin).__module__.partition(".")[0]
    problems: list[str] = []
    stopped = True
    generators = Generators()
    with _interrupts() as pressed, _no_way_out(own) as left, deadline(limit, functools.partial(_place, own)) as alarm:
        inside = Surroundings()
        try:
            stopped = _is_stopped(check, plugin, problems, pressed, own)
        finally:
            changes = inside.changes(own)
            inside.restore()
            generators.restore()
    problems += [problem_text("a plugin that leaves the process alone", text, _NO_END) for text in dict.fromkeys(left)]
    problems += _late(alarm, limit)
    problems += [problem_text(f"{change.what} left as it was", change.got, change.mend) for change in changes]
    return Verdict(tuple(problems), stopped)


def _is_stopped(check: Callable[[Any], None], plugin: Plugin, problems: list[str], pressed: list[bool], own: str) -> bool:
    """Runs the check; the text of what stopped it goes to ``problems``."""
    try:
        check(plugin)
    except (TooLong, _Left):
        return True  # told by the alarm, and by whoever caught it leaving
    except Nonconforming as problem:
        problems.append(str(problem))
    except Exception as error:  # noqa: BLE001  a plugin that raises does not conform, whatever it raises
        problems.append(_raised(error, own))
    except KeyboardInterrupt as stop:
        if pressed:
            raise
        problems.append(_ended(stop))
    except BaseException as stop:  # noqa: BLE001  SystemExit, GeneratorExit: no reason for the other checks not to run
        problems.append(_ended(stop))
    else:
        return False
    return True


def _raised(error: Exception, own: str) -> str:
    """The plugin's innermost line and the error, then the traceback from where the plugin was entered, or all of it; a UserError says enough by itself."""
    trace = error.__traceback__
    frames = list(traceback.walk_tb(trace))
    mine = [i for i, (frame, _) in enumerate(frames) if _is_of(own, frame)]
    entered = mine[0] if mine else 1  # without this module's own line
    for _ in range(entered):
        trace = trace.tb_next if trace else None
    lines = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    frame, number = frames[mine[-1] if mine else -1]
    told = f"{_line(frame, number)}\n  raised {type(error).__name__}: {error}"
    return told if isinstance(error, UserError) else f"{told}\n{lines}"


def _ended(stop: BaseException) -> str:
    last = traceback.extract_tb(stop.__traceback__)[-1]
    what = f"sys.exit({stop.code!r})" if isinstance(stop, SystemExit) else f"raise {type(stop).__name__}"
    return problem_text(
        "a plugin that leaves the process alone", f"{what} at {Path(last.filename).name}:{last.lineno} in {last.name}", _NO_END
    )


def _late(alarm: Alarm, limit: float) -> list[str]:
    if not alarm.stood:
        return []
    mend = f"look for a loop that does not end; if it only needs longer: --timeout, or {TIMEOUT_VARIABLE}=300"
    return [problem_text(f"an end within {limit:g} s", f"it still ran, at {alarm.stood}", mend)]


def _is_of(own: str, frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == own


def _place(own: str, frame: FrameType | None) -> str:
    """The innermost line of the package ``own`` that is being run, else the innermost line."""
    at, innermost = frame, frame
    while at is not None and not _is_of(own, at):
        at = at.f_back
    found = at or innermost
    return "an unknown line" if found is None else _line(found, found.f_lineno)


def _line(frame: FrameType, number: int) -> str:
    line = linecache.getline(frame.f_code.co_filename, number).strip()
    return f"{Path(frame.f_code.co_filename).name}:{number} in {frame.f_code.co_name}" + (f": {line}" if line else "")


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """A list that is no longer empty once the user has pressed Ctrl-C."""
    pressed: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(True)
        before(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


_FATAL = {
    signal.SIGABRT,
    signal.SIGSEGV,
    signal.SIGTERM,
    signal.SIGINT,
    *(getattr(signal, name) for name in ("SIGKILL",) if hasattr(signal, name)),
}
_DOORS = ("_exit", "abort", "execv", "execve", "kill")


@contextmanager
def _no_way_out(own: str) -> Iterator[list[str]]:
    """Calls of ``os._exit`` and its kin raise, and are listed; a forked child may leave."""
    left: list[str] = []
    process = os.getpid()
    before = {name: getattr(os, name) for name in _DOORS}

    def closed(name: str) -> Callable[..., Any]:
        def leave(*args: Any) -> Any:
            fatal = name != "kill" or (args[0] in (0, process) and args[1] in _FATAL)
            if os.getpid() != process or not fatal:
                return before[name](*args)
            _refuse(left, f"os.{name}({', '.join(map(repr, args))})", own)

        return leave

    shut = [(vars(os), name, name) for name in _DOORS] + _taken(own, before)
    for namespace, key, name in shut:
        namespace[key] = closed(name)
    try:
        yield left
    finally:
        for namespace, key, name in shut:
            namespace[key] = before[name]


def _taken(own: str, doors: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Where modules of the package hold one of the functions, as after ``from os import _exit``: namespace, key, function's name."""
    modules = [vars(module) for name, module in list(sys.modules.items()) if name.partition(".")[0] == own]
    by_identity = {id(door): name for name, door in doors.items()}
    return [(names, key, by_identity[id(value)]) for names in modules for key, value in names.items() if id(value) in by_identity]


def _refuse(left: list[str], call: str, own: str) -> NoReturn:
    left.append(f"{call} at {_place(own, sys._getframe(2))}")
    raise _Left
