"""Planted speed-ups on this machine: does the estimator find what is known to be there?

    python -m benchmarks.trust.planted --cells 20 --threads 1 --load none

Each cell times n equal matrix products against m of them, so the true speed-up is n / m. A/A cells (20 / 20) must never read as a difference
(MT-01), planted ones never with the wrong sign (MT-02); what is not trusted must say so. ``--load burst`` runs a neighbour that is busy in
bursts. Prints one line per ratio: value and target.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsefleet.measure.clock import CpuClock
from sparsefleet.measure.estimate import Estimate, Plan, compare
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.measure.trust import doubts

PRODUCTS = 20
PLANTED = {"A/A": 20, "1.11x": 18, "0.91x": 22, "2.00x": 10}
BURST = "import random, time\nwhile True:\n    end = time.time() + random.uniform(0.1, 1.0)\n    while time.time() < end: pass\n    time.sleep(random.uniform(0.1, 1.0))"


@dataclass(frozen=True)
class Cell:
    """One comparison with a known answer."""

    truth: float
    estimate: Estimate
    reasons: list[str]
    seconds: float

    @property
    def verdict(self) -> str:
        """What a table would say."""
        if self.reasons or self.estimate.ci95 is None:
            return "not trusted"
        low, high = self.estimate.ci95
        return "FASTER" if low > 1.03 else "SLOWER" if high < 0.97 else "SAME" if low >= 0.97 and high <= 1.03 else "INCONCLUSIVE"

    @property
    def error(self) -> float:
        """Relative error of the figure."""
        return abs((self.estimate.speedup or float("inf")) / self.truth - 1)

    @property
    def is_false(self) -> bool:
        """True if the verdict claims a difference that is not there or has the wrong sign."""
        allowed = "FASTER" if self.truth > 1 else "SLOWER" if self.truth < 1 else ""
        return self.verdict in ({"FASTER", "SLOWER"} - {allowed}) or (self.verdict == "SAME" and self.truth != 1)


def work(n: int, size: int, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """``n`` products of one ``size`` square matrix with the input."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))

    def call(x: torch.Tensor) -> torch.Tensor:
        for _ in range(n):
            with torch.inference_mode():  # inside: whatever is paid once per call would make the truth differ from n / m
                out = weight @ x
        return out

    return call


def cell(n_sparse: int, index: int, threads: int) -> Cell:
    """Times one cell; sizes differ from cell to cell."""
    size = random.Random(index).choice([96, 128, 192, 256])
    inputs = [torch.randn(size, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    started = time.perf_counter()
    dense, second, sparse = work(PRODUCTS, size, 0), work(PRODUCTS, size, 1), work(n_sparse, size, 2)
    plan = Plan(f"planted|{n_sparse}|{index}")
    estimate, _ = compare(dense, sparse, second=second, inputs=inputs, plan=plan, clock=CpuClock(threads))
    return Cell(PRODUCTS / n_sparse, estimate, doubts(estimate), time.perf_counter() - started)


def summary(name: str, cells: list[Cell]) -> dict[str, Any]:
    """The figures of one planted ratio."""
    trusted = [c for c in cells if not c.reasons]
    errors = sorted(c.error for c in trusted)
    return {
        "planted": name,
        "cells": len(cells),
        "trusted": len(trusted),
        "false": sum(c.is_false for c in cells),
        "covered": sum(c.estimate.ci95 is not None and c.estimate.ci95[0] <= c.truth <= c.estimate.ci95[1] for c in trusted),
        "median_error": errors[len(errors) // 2] if errors else None,
        "max_error": errors[-1] if errors else None,
        "verdicts": {verdict: sum(c.verdict == verdict for c in cells) for verdict in sorted({c.verdict for c in cells})},
        "seconds_per_cell": sum(c.seconds for c in cells) / len(cells),
    }


def line(row: dict[str, Any]) -> str:
    """One row for people: value and target."""
    worst = "-" if row["max_error"] is None else f"{100 * row['max_error']:.2f} %"
    return (
        f"{row['planted']:6} false {row['false']}/{row['cells']} (target 0)  trusted {row['trusted']}/{row['cells']}  "
        f"max trusted error {worst} (target <= 2 %)  interval covers {row['covered']}/{row['trusted']}  "
        f"{row['seconds_per_cell']:.1f} s a cell  {row['verdicts']}"
    )


def main() -> int:
    """0 if no verdict is false and no trusted figure is off by more than 2 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20, help="per planted ratio")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", choices=["none", "burst"], default="none")
    parser.add_argument("--json", type=Path, help="write the figures with the machine's fingerprint here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    neighbour = subprocess.Popen([sys.executable, "-c", BURST]) if options.load == "burst" else None
    found: dict[str, list[Cell]] = {name: [] for name in PLANTED}
    try:
        for index in range(options.cells):
            for name, n_sparse in PLANTED.items():
                found[name].append(cell(n_sparse, index, options.threads))
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    rows = [summary(name, cells) for name, cells in found.items()]
    print(f"planted speed-ups, {options.threads} thread(s), load {options.load}")
    for row in rows:
        print(line(row))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        body = {"suite": "trust", "what": "planted", "options": vars(options) | {"json": None}, "rows": rows, "fingerprint": fingerprint()}
        options.json.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
    return int(any(row["false"] or (row["max_error"] or 0) > 0.02 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
