"""One job of a case in a process of its own: ``python -m benchmarks.ops.child JOB ANSWER``, both JSON files; ``measure`` starts it.

Jobs: ``make`` the problem of a shape; ``time`` a peer; the ``peak`` of a peer's memory. An answer may be ``not_run`` or ``wrong``, with the reason.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import NotRun
from benchmarks.ops import peers, problem
from benchmarks.ops.cases import Shape
from benchmarks.ops.peak import peak
from benchmarks.ops.timing import QUICK, Effort, Wrong, against
from sparsefleet.fleet.processes import die_with_parent

OURS = "ours"


def main(arguments: list[str]) -> int:
    """0 if there is an answer; what our own side raises goes to stderr, and there is none."""
    if sys.platform == "linux":
        die_with_parent(os.getppid())
        with suppress(OSError):  # if memory runs out after all, this process should pay and not its neighbours
            Path("/proc/self/oom_score_adj").write_text("1000")
    job = json.loads(Path(arguments[0]).read_text())
    try:
        answer = JOBS[job["job"]](job)
    except NotRun as why:
        answer = {"not_run": str(why)}
    except Wrong as why:
        answer = {"wrong": str(why)}
    except (RuntimeError, NotImplementedError, MemoryError) as why:
        if job.get("peer") in (None, OURS):
            raise
        answer = {"not_run": f"it cannot: {(str(why) or type(why).__name__).splitlines()[0][:160]}"}
    Path(arguments[1]).write_text(json.dumps(answer, allow_nan=False))
    return 0


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the problem."""
    problem.make(Shape(*job["shape"]), job["batch"]).save(Path(job["problem"]))
    return {}


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Times of a peer, or of ours with the share of the machine's limit."""
    from sparsefleet.measure.clock import clock_for

    _settings(job["threads"])
    one = problem.Problem.load(Path(job["problem"]), job["device"])
    clock = clock_for(job["device"], job["threads"] if job["device"] == "cpu" else None)
    effort = QUICK if job["quick"] else Effort(**job["effort"])
    found = against(one, _kind(job["peer"]), clock, job["key"], effort, _say)
    if job["peer"] == OURS:
        from benchmarks.ops.of_limit import of_limit

        found["limit"] = of_limit(one, job["device"], clock.threads, found["ops"])
    return found


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a training step."""
    _settings(job["threads"])
    return peak(Path(job["problem"]), _kind(job["peer"]), job["layout"], job["device"])


def _kind(name: str) -> peers.Kind:
    return peers.OURS if name == OURS else peers.kinds()[name]


def _settings(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")


def _say(text: str) -> None:
    print(f"      {text}", file=sys.stderr, flush=True)


JOBS = {"make": make, "time": timed, "peak": memory}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
