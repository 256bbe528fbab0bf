"""MT-07: known transients of 64, 256 and 512 MB, each in a fresh process, against the peak that the product reports."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.figures import Figure, Run

MIB = 2**20
SIZES_MIB = (64, 256, 512)
ALLOWED_SHARE, ALLOWED_BYTES = 0.05, 4 * MIB
CHILD = """
import json, sys
import torch
from sparsefleet.measure.memory import peak_of
size, device = int(sys.argv[1]), sys.argv[2]
kept = torch.ones(2**20, device=device)  # what is there before does not count
def call():
    for share in (8, 2, 1, 4):  # transients one after another: the largest counts, and their sum does not
        torch.ones(size // share, dtype=torch.uint8, device=device)
    return None
_, peak = peak_of(call, device)
print(json.dumps([peak.bytes, peak.kind, peak.why_not]))
"""


def measured(size: int, device: str = "cpu") -> tuple[int | None, str, str]:
    """(bytes, kind, why not) that a fresh process reports for a transient of ``size`` bytes."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(size), device], capture_output=True, text=True, check=True, timeout=120)
    found, kind, why_not = json.loads(done.stdout.splitlines()[-1])
    return found, kind, why_not


def figures(run: Run) -> list[Figure]:
    """The error of each size beside the larger of 5 % and 4 MiB, on the CPU and on a GPU if there is one."""
    import torch

    found = []
    for device in ("cpu", "cuda"):
        for mib in SIZES_MIB[: run.pick(len(SIZES_MIB), 1)]:
            what, allowed = f"error of the peak of a {mib} MiB transient, {device}", max(ALLOWED_SHARE * mib, ALLOWED_BYTES / MIB)
            if device == "cuda" and not torch.cuda.is_available():
                found.append(Figure(what, "MiB", target=allowed, at_least=False, note="needs a CUDA device"))
                continue
            value, kind, why_not = measured(mib * MIB, device)
            error = None if value is None else abs(value - mib * MIB) / MIB
            found.append(Figure(what, "MiB", error, target=allowed, at_least=False, note=run.note(why_not or kind)))
    return found
