"""What the GPU can do at best: streams and gathers by level and row size, products by precision, the shortest kernel."""

from __future__ import annotations

from benchmarks.figures import Figure, Run
from benchmarks.gpu.device import DEVICE, require
from sparsefleet.measure.clock import clock_for
from sparsefleet.measure.peaks import Peaks, peaks


def figures(run: Run) -> list[Figure]:
    """The rates of this device, measured now; the better of these and of earlier ones stays in the cache for the cases."""
    require()
    found = peaks(DEVICE, clock_for(DEVICE).threads, refresh=True)
    run.keep(found.to_json())
    return told(found)


def told(found: Peaks) -> list[Figure]:
    """Every rate as a figure without a target."""
    made = []
    for level in found.levels:
        made += [
            Figure(f"{level.name}, read", "GB/s", level.read / 1e9),
            Figure(f"{level.name}, read and written", "GB/s", level.stream / 1e9),
        ]
        made += [Figure(f"{level.name}, rows of {size} bytes by index", "GB/s", rate / 1e9) for size, rate in level.gather.items()]
    made += [Figure(f"matrix product, {name}", "TFLOP/s", rate / 1e12) for name, rate in found.flops.items()]
    return [*made, Figure("shortest kernel", "us", 1e6 * found.launch_s)]
