"""RF-21: Ctrl-C once and twice, at random moments of a sweep's life: soon over, nothing left behind, and always resumable.

The signal goes to the whole process group of ``sparsefleet``, as a terminal sends it: from the interpreter's start over Ray's start, training,
measuring and uploading to the end. The moments are drawn evenly over the time that the same sweep takes undisturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep, command_of, gone, tied
from benchmarks.figures import Figure, Run
from sparsefleet.spawn import module_command

_ONCE_S, _TWICE_S = 10.0, 2.0
_BETWEEN_S = 0.5
_ENDED_BY_SIGNAL = (130, -signal.SIGINT)  # what a shell calls 130 is the signal itself while Python starts
_MEASURED = "measure: {level: screen, batch_sizes: [1], ops: [forward], baselines: [dense_eager]}"


def submitted(sweep: Sweep) -> subprocess.Popen[bytes]:
    """``sparsefleet submit grid`` in a session of its own."""
    with (sweep.home / "driver.log").open("ab") as log:
        return subprocess.Popen(
            tied(module_command("sparsefleet.cli", "submit", "grid", str(sweep.grid))),
            env=sweep.environment,
            cwd=sweep.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def interrupted(after_s: float, *, twice: bool) -> dict[str, Any]:
    """What Ctrl-C did at that moment of a sweep in a new home; ``ended`` is None where the sweep was over before."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
        sweep = Sweep(Path(folder), 2, epochs=1, measure=_MEASURED)
        driver = submitted(sweep)
        try:
            driver.wait(after_s)
            return {"ended": None, "after_s": after_s}
        except subprocess.TimeoutExpired:
            state = sweep.row().state
        os.killpg(driver.pid, signal.SIGINT)
        if twice:
            time.sleep(_BETWEEN_S)
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGINT)
        begun = time.monotonic()
        code = driver.wait(120)
        seconds = time.monotonic() - begun
        left = [command_of(process) for process in gone(sweep.home)]
        wrong = violations(sweep.home, sweep.id)
        said = sweep.log[-600:]
        resumed = sweep.driver().wait(300)
        row = sweep.row()
        whole = resumed == 0 and row.state == "DONE" and row.counts.get("SUCCEEDED") == row.counts["total"]
        wrong += violations(sweep.home, sweep.id)
    return {
        "ended": code,
        "after_s": round(after_s, 2),
        "state": state,
        "seconds": round(seconds, 2),
        "left": left,
        "wrong": wrong,
        "resumed": whole,
        "said": said,
    }


def undisturbed_s() -> float:
    """How long the sweep takes when nobody presses anything."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-", ignore_cleanup_errors=True) as folder:
        sweep = Sweep(Path(folder), 2, epochs=1, measure=_MEASURED)
        begun = time.monotonic()
        submitted(sweep).wait(300)
        return time.monotonic() - begun


def figures(asked: Run) -> list[Figure]:
    """Seconds to the end, exit codes, processes left and what ``resume`` made of it, over all moments."""
    n_moments = asked.pick(10, 3)  # each once and twice
    whole_s = undisturbed_s()
    asked.say(f"undisturbed: {whole_s:.1f} s")
    draw = random.Random(0)
    found: list[dict[str, Any]] = []
    for number in range(n_moments):  # one in every n-th of the time, so that start and end are among them
        moment = (number + draw.random()) / n_moments * whole_s
        for twice in (False, True):
            one = {"twice": twice, **interrupted(moment, twice=twice)}
            found.append(one)
            asked.say(
                f"{'twice' if twice else 'once '} after {moment:5.1f} s: {one.get('state')}, {one['ended']} in {one.get('seconds')} s"
            )
    asked.keep({"whole_s": whole_s, "moments": found})
    hit = [one for one in found if one["ended"] is not None]
    other = [f"{one['ended']} after {one['after_s']} s" for one in hit if one["ended"] not in _ENDED_BY_SIGNAL]
    left = [command for one in hit for command in one["left"]]
    wrong = [text for one in hit for text in one["wrong"]]
    once, twice_ = ([one["seconds"] for one in hit if one["twice"] is kind] for kind in (False, True))
    return [
        Figure("moments at which the sweep still ran", "moments", len(hit), target=1.6 * n_moments, note=asked.note(f"of {len(found)}")),
        Figure("Ctrl-C once: to the end, at most", "s", max(once), target=_ONCE_S, at_least=False, note=asked.note()),
        Figure("Ctrl-C twice: from the second to the end, at most", "s", max(twice_), target=_TWICE_S, at_least=False, note=asked.note()),
        Figure("ends with another exit code than 130", "ends", len(other), target=0, at_least=False, note=asked.note("; ".join(other))),
        Figure("processes left", "processes", len(left), target=0, at_least=False, note=asked.note("; ".join(left[:3]))),
        Figure("resumed to the end", "sweeps", sum(one["resumed"] for one in hit), target=len(hit), note=asked.note()),
        Figure("violations of the contract", "violations", len(wrong), target=0, at_least=False, note=asked.note("; ".join(wrong[:3]))),
    ]
