"""Checks a plugin in a process of its own, which may hang, exit or crash: the fault gets the name of the check, and the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sparsefleet.spawn import module_command
from sparsefleet.testing.expect import left_out_text

STARTING = "starts"
"""Stands for the name of a check while the module is imported and the plugin built."""
REFUSED = "it cannot be built: "
"""What the fault says where the plugin's bounds exclude the parameters that it was to be built with."""
STARTING_RULE = "The module is imported and the plugin is built."
RUNS = "runs"
"""The check whose failure leaves out all that use the plugin."""
_START_LIMIT_S = 120.0
_GRACE_S = 5.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Target:
    """A plugin by name, and the hyper-parameters to build it with."""

    family: str
    name: str
    module: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What one check gave; as ``kit.Outcome``, without torch."""

    check: str
    rule: str
    problem: str
    seconds: float


@dataclass
class _Child:
    """One process and what it has said."""

    process: subprocess.Popen[bytes]
    trace: Path
    said: bytes = b""
    checks: dict[str, str] = field(default_factory=dict)
    use: list[str] = field(default_factory=list)
    current: str = STARTING
    since: float = field(default_factory=time.monotonic)
    done: bool = False


def check_isolated(
    target: Target,
    *,
    timeout_s: float,
    only: Sequence[str] = (),
    starting: Callable[[str], None] = lambda _: None,
) -> Iterator[Result]:
    """Every check of ``target``, or those in ``only``; the first result is called ``starts`` and tells how long the import took.

    Args:
        timeout_s: seconds that each check may take.
        starting: called with the name of each check before it runs.
    """
    finished: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            child = _start(target, Path(folder) / "trace", timeout_s, only, finished)
            try:
                for result in _results(child, timeout_s, starting):
                    if result.check not in finished:
                        finished.append(result.check)
                        yield result
            finally:
                _end(child)
            if child.current == RUNS:
                finished += child.use
            if child.done or not child.checks:
                return


def _start(target: Target, trace: Path, timeout_s: float, only: Sequence[str], finished: Sequence[str]) -> _Child:
    request = {
        "family": target.family,
        "name": target.name,
        "module": target.module,
        "params": dict(target.params),
        "timeout_s": timeout_s,
        "only": list(only),
        "finished": list(finished),
        "trace": str(trace),
        "parent": os.getpid(),
    }
    trace.write_text("")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = module_command("sparsefleet.testing.checked", json.dumps(request))
    return _Child(subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env, start_new_session=True), trace)


def _results(child: _Child, timeout_s: float, starting: Callable[[str], None]) -> Iterator[Result]:
    """What the child says, and at last the fault that ended it, if one did."""
    assert child.process.stdout is not None
    for event in _events(child, child.process.stdout, timeout_s):
        if event["event"] == "starts":
            child.current, child.since = event["check"], time.monotonic()
            starting(child.current)
        elif event["event"] == "checks":
            child.checks, child.use = event["checks"], event["use"]
            yield Result(STARTING, event["rule"], event["problem"], event["seconds"])
        elif event["event"] == "ended":
            child.current, child.since = "", time.monotonic()
            yield Result(event["check"], child.checks[event["check"]], event["problem"], event["seconds"])
        else:
            child.done = True
            return
    seconds = time.monotonic() - child.since
    rule = child.checks.get(child.current, STARTING_RULE)
    left_out = left_out_text(len(child.use)) if child.current == RUNS else ""
    yield Result(child.current, rule, _fault(child, timeout_s) + left_out, seconds)


def _events(child: _Child, pipe: IO[bytes], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Lines of the child as they come; ends when it ends, or when its time is up."""
    os.set_blocking(pipe.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            limit = _START_LIMIT_S if child.current == STARTING else timeout_s + _GRACE_S
            ended = child.process.poll() is not None  # before reading: what it wrote last is still read
            if selector.select(_POLL_S):
                part = os.read(pipe.fileno(), 1 << 16)
                child.said += part
                if not part and not ended:
                    time.sleep(_POLL_S)  # it has closed its output and goes on
                while b"\n" in child.said:
                    line, child.said = child.said.split(b"\n", 1)
                    yield json.loads(line)
                if part:
                    continue
            if ended or time.monotonic() - child.since > limit:
                return


def _fault(child: _Child, timeout_s: float) -> str:
    code = child.process.poll()
    at = _place(child.trace.read_text(errors="replace"))
    told = f", at {at}" if at else ""
    if code is None:
        limit = _START_LIMIT_S if child.current == STARTING else timeout_s
        mend = "look for a loop that does not end, in C too; if it only needs longer: --timeout 300"
        return _text(f"an end within {limit:g} s", f"it still ran and was killed{told}", mend)
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    return _text(
        "a plugin that leaves the process alone", f"ended the process with {how}{told}", "raise an exception that says what is wrong"
    )


def _text(expected: str, got: str, mend: str) -> str:
    return f"expected: {expected}\n  got:      {got}\n  mend:     {mend}"


def _place(trace: str) -> str:
    """The innermost line of a dumped traceback that belongs neither to torch nor to this package."""
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', trace)
    ours = str(Path(__file__).resolve().parent.parent)
    for file, line, function in frames:
        if not file.startswith((ours, "<")) and "/torch/" not in file and "/lib/python" not in file:
            return f"{Path(file).name}:{line} in {function}"
    return ""


def _end(child: _Child) -> None:
    """Kills the child and whatever it has started, unless it is gone."""
    if child.done:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a thread of the plugin that does not end
            child.process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
    if child.process.stdout is not None:
        child.process.stdout.close()
