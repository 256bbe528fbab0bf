"""MT-12: seconds per cell at screen and at publish level, and what of a time pass is neither its samples nor the choice of the baseline.

Passes run as in a fleet: forked from a process that has imported torch and the plugins. The machine's limits are measured before, as they are once
per machine; the choice between eager and compiled is made once per dense net and counts to the first cell that needs it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, Run

PARTS = {
    "load_network": "load",
    "build_network": "load",
    "check_network": "correctness",
    "choose": "baselines",
    "compare": "comparison",
    "fingerprint": "fingerprint",
}
"""Functions of ``sparsefleet.measure.run`` whose time is told apart."""
LIMIT_S = 0.5
Passed = dict[str, Any]


def figures(run: Run) -> list[Figure]:
    """Overhead per time pass by op, and seconds per cell by level."""
    found = in_child(lambda: _preloaded(run))
    run.keep(found)
    told = []
    for op in ("forward", "step"):
        passes = [one for one in found["passes"] if one["kind"] == "time" and one["op"] == op]
        beyond = [one["overhead"] for one in passes]
        parts = {
            name: median(one["parts"].get(name, 0.0) for one in passes) for name in ("load", "correctness", "audit", "fingerprint", "rest")
        }
        note = f"{len(passes)} passes; " + ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in parts.items())
        told.append(_middle(f"overhead of a time pass, {op}", beyond, run.note(note), target=LIMIT_S))
        chosen = [one["parts"]["baselines"] for one in passes]
        told.append(_middle(f"choice of the baselines in a time pass, {op}", chosen, run.note("compiling included, the first time")))
        told.append(_middle(f"samples of a time pass, {op}", [one["samples"] for one in passes], run.note("warm-up and rounds")))
    memory = [one["wall"] for one in found["passes"] if one["kind"] == "memory"]
    told.append(_middle("a memory pass", memory, run.note(f"{len(memory)} passes, two a cell")))
    for level in ("screen", "publish"):
        seconds = [one["seconds"] for one in found["cells"] if one["level"] == level]
        told.append(_middle(f"a cell at {level} level", seconds, run.note(f"{len(seconds)} cells of a 64-256-256-10 net; no target")))
    return told


def _middle(what: str, values: list[float], note: str, **limits: Any) -> Figure:
    return Figure(what, "s", median(values), (min(values), max(values)), note=note, at_least=False, **limits)


def _preloaded(run: Run) -> dict[str, list[Passed]]:
    """``measured`` in this process, once it has imported what a fleet's children find imported; it must end without an interpreter's goodbye."""
    from sparsefleet.fleet.forkserver import preload

    preload()
    with tempfile.TemporaryDirectory() as folder:
        return measured(run, in_child(lambda: _jobs(Path(folder))))


def _jobs(folder: Path) -> list[dict[str, Any]]:
    from benchmarks.trust.trained import sparse_net

    net = sparse_net(folder)
    jobs = net.jobs([1, 64], ("forward", "step"))
    return [{"job": job.model_dump(mode="json", by_alias=True), "model": str(net.model), "masks": str(net.folder)} for job in jobs]


def measured(run: Run, cells: list[dict[str, Any]]) -> dict[str, list[Passed]]:
    """Every pass and every cell, with their seconds."""
    from sparsefleet.measure.lease import device_lease
    from sparsefleet.measure.passes import MeasureRequest, Memo, PassResult, run_passes

    passes: list[Passed] = []
    done: list[Passed] = []

    def runner(request: MeasureRequest) -> PassResult:
        begun = time.monotonic()
        told = in_child(lambda: _passed(request))
        result = PassResult.model_validate(told["result"])
        wall = time.monotonic() - begun
        job, kind = request.job, request.part.kind
        one = {"kind": kind, "op": job.op, "batch": job.batch_size, "level": request.level, "wall": wall, "state": result.state}
        passes.append(one | (_parts(wall, told["parts"], result.samples) if result.samples else {}))
        return result

    with device_lease("cpu", 600.0):
        memo = Memo()
        for level in ("screen", "publish"):
            for cell in cells[:: run.pick(1, 2)]:
                request = MeasureRequest.model_validate({**cell, "level": level})
                if not memo.peaks:
                    runner(request.model_copy(update={"part": request.part.model_copy(update={"kind": "peaks"})}))  # cached from here on
                begun = time.monotonic()
                result = run_passes(request, runner, memo)
                if result is None or not result.timings:
                    raise RuntimeError(f"{request.job.op} ended {result and (result.state, result.reason)}")
                seconds, verdict = time.monotonic() - begun, result.timings[0].verdict
                done.append({"level": level, "op": request.job.op, "batch": request.job.batch_size, "seconds": seconds, "verdict": verdict})
                run.say(f"{level}, {request.job.op}, batch {request.job.batch_size}: {seconds:.1f} s, {verdict}")
            memo = Memo(peaks=memo.peaks)
    return {"passes": passes, "cells": done}


def _parts(wall: float, parts: dict[str, float], samples: dict[str, Any]) -> Passed:
    """What the seconds of a time pass went into."""
    sampled = samples["warmup"]["seconds"] + sum(map(sum, samples["seconds"].values()))
    audit = parts.pop("comparison") - sampled
    overhead = wall - sampled - parts["baselines"]
    rest = overhead - audit - sum(seconds for name, seconds in parts.items() if name != "baselines")
    return {"samples": sampled, "overhead": overhead, "parts": {**parts, "audit": audit, "rest": rest}}


def _passed(request: Any) -> dict[str, Any]:
    """The pass in this process, and the seconds of its parts."""
    from sparsefleet.measure import child, run as measuring

    spent: dict[str, float] = defaultdict(float)
    for name, part in PARTS.items():
        setattr(measuring, name, _clocked(getattr(measuring, name), part, spent))
    result = child.run(request)
    return {"result": result.model_dump(mode="json", by_alias=True), "parts": {"baselines": 0.0, **spent}}


def _clocked(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.monotonic() - begun

    return clocked


def in_child(work: Callable[[], Any]) -> Any:
    """The JSON values that ``work`` returns in a fork of this process, which itself computes nothing and so has no threads to lose.

    Raises:
        RuntimeError: the child ended without an answer.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            with os.fdopen(write, "w") as stream:
                json.dump(work(), stream, allow_nan=False)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise RuntimeError(f"a forked pass ended with {status}")
    return json.loads(text)
