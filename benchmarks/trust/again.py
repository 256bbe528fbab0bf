"""MT-08: timings of a trained network, and every figure and verdict of them again from their raw samples in another process.

    python -m benchmarks.trust.again FOLDER            computes the timings in FOLDER again and prints what differs

The timings are taken as ``sparsefleet measure`` takes them: every pass in a process that imports everything anew.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Run
from benchmarks.trust.trained import sparse_net
from sparsefleet.measure.recheck import recheck


def figures(run: Run) -> list[Figure]:
    """Digits that differ; altered figures and samples that went unnoticed; and how long a cell takes by hand."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        seconds = take(run, folder)
        done = subprocess.run([sys.executable, "-m", "benchmarks.trust.again", text], stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
    run.keep(told)
    differing = [f"{name}: {found[0]}" for name, found in told["same"].items() if found]
    note = run.note(f"{len(told['same'])} timings, {told['figures']} figures" + (f"; {differing[0]}" if differing else ""))
    unnoticed = [name for name, found in told["altered"].items() if not found]
    altered = run.note(
        f"of {len(told['altered'])}: the last digit of the speed-up, one sample" + (f"; {unnoticed[0]}" if unnoticed else "")
    )
    return [
        Figure("timings that read otherwise in another process", "timings", len(differing), target=0, at_least=False, note=note),
        Figure("alterations that the recheck did not notice", "alterations", len(unnoticed), target=0, at_least=False, note=altered),
        *(
            Figure(
                f"a cell by hand, {level} level", "s", sum(took) / len(took), (min(took), max(took)), note=run.note(f"{len(took)} cells")
            )
            for level, took in seconds.items()
        ),
    ]


def take(run: Run, folder: Path) -> dict[str, list[float]]:
    """Seconds of each cell by level; its timing and its samples are in ``folder`` afterwards."""
    from sparsefleet.measure.local import measure_here
    from sparsefleet.measure.passes import MeasureRequest

    net = sparse_net(folder)
    screen = net.jobs([1, 64], ("forward", "step"))[: run.pick(4, 1)]
    asked = [("screen", job) for job in screen] + ([] if run.quick else [("publish", job) for job in net.jobs([64], ("forward",))])
    seconds: dict[str, list[float]] = {}
    for level, job in asked:
        begun = time.monotonic()
        result = measure_here(MeasureRequest(job=job, model=net.model, masks=net.folder, level=level))
        seconds.setdefault(level, []).append(time.monotonic() - begun)
        if not result.timings or result.body is None:
            raise RuntimeError(f"{job.op}, batch {job.batch_size} ended {result.state}: {result.reason}")
        timing = result.timings[0].model_dump(mode="json")
        name = f"{level}-{job.op}-{job.batch_size}"
        run.say(f"{name}: {timing['verdict']}, {seconds[level][-1]:.1f} s")
        (folder / f"{name}.timing").write_text(json.dumps(timing))
        (folder / f"{name}.samples").write_text(result.body)
    return seconds


def compute_again(folder: Path) -> dict[str, Any]:
    """By timing, what the recheck says of it as it is, and of what was altered."""
    same: dict[str, list[str]] = {}
    altered: dict[str, list[str]] = {}
    n_figures = 0
    for path in sorted(folder.glob("*.timing")):
        timing, body = json.loads(path.read_text()), path.with_suffix(".samples").read_bytes()
        n_figures += len(timing)
        same[path.stem] = recheck(timing, body)
        side = "rival_speedup" if timing["speedup"] is None else "speedup"
        altered[f"{path.stem}: last digit"] = recheck({**timing, side: math.nextafter(timing[side], math.inf)}, body)
        altered[f"{path.stem}: a sample"] = recheck(timing, _with_one_other(body))
    return {"same": same, "altered": altered, "figures": n_figures}


def _with_one_other(body: bytes) -> bytes:
    value = json.loads(body)
    value["processes"][0]["seconds"]["sparse"][0] *= 1.5
    return json.dumps(value, separators=(",", ":")).encode()


if __name__ == "__main__":
    print(json.dumps(compute_again(Path(sys.argv[1]))))
