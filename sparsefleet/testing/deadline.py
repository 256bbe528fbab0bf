"""A time limit for code that may swallow every exception: an alarm that rings again, and escapes from the handler that caught it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sparsefleet.errors import UserError

TIMEOUT_S = 60.0
TIMEOUT_VARIABLE = "SPARSEFLEET_CHECK_TIMEOUT"
_AGAIN_S = 0.5


def time_limit(asked: float | None = None) -> float:
    """Seconds that one check may take: ``asked``, else ``SPARSEFLEET_CHECK_TIMEOUT``, else 60.

    Raises:
        UserError: it is no positive number.
    """
    text = asked if asked is not None else os.environ.get(TIMEOUT_VARIABLE) or TIMEOUT_S
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise UserError(f"a check cannot be limited to {text!r} s", fix=f"{TIMEOUT_VARIABLE}={TIMEOUT_S:.0f}")
    return limit


class TooLong(BaseException):
    """The time is up."""


@dataclass
class Alarm:
    """Where the code stood when the time was up; empty: it ended in time."""

    stood: str = ""


@contextmanager
def deadline(seconds: float, where: Callable[[FrameType | None], str]) -> Iterator[Alarm]:
    """Raises TooLong in the block after ``seconds``, and again every half second while it is swallowed.

    Only the main thread has alarms: elsewhere nothing is limited. A loop inside C is not interrupted (``isolated`` kills it).

    Args:
        where: tells a place in the code from the frame that ran.
    """
    alarm = Alarm()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield alarm
        return
    process, tracing, caller = os.getpid(), sys.gettrace(), sys._getframe(2)  # 0: this generator, 1: contextlib

    def ring(_: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a forked child of the plugin
        if alarm.stood:
            _escape_when_caught(frame, caller)
        alarm.stood = alarm.stood or where(frame)
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(tracing)
        signal.signal(signal.SIGALRM, before)
        if left_s:  # somebody else's limit, which went on
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left_s - (time.monotonic() - began)), interval_s)


def _escape_when_caught(frame: FrameType | None, until: FrameType) -> None:
    """Raises TooLong once more as soon as an ``except`` block that caught it begins, in any frame inside ``until``."""

    def trace(_: FrameType, event: str, __: Any) -> Any:
        if event == "line" and isinstance(sys.exc_info()[1], TooLong):
            raise TooLong
        return trace

    sys.settrace(trace)
    while frame is not None and frame is not until:
        frame.f_trace = trace
        frame = frame.f_back
