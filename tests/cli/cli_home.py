"""A home with a sweep in its ledger, made without running anything; and the program as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.trial.spec import TrialSpec


def spec(seed: int, density: float = 1.0, **changes: Any) -> TrialSpec:
    """A trial of digits, dense or SET on csr."""
    method: dict[str, Any] = {} if density == 1 else {"rewirer": {"name": "set"}}
    return TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "params": {"hidden": [64]}},
            "layer": {"name": "dense" if density == 1 else "csr"},
            "density": density,
            "method": method,
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "train": {"epochs": 1, "batch_size": 64},
            "seed": seed,
            **changes,
        }
    )


def fill(home: Path, sweep: str = "demo-0a1b2c3d", seeds: int = 2, measure: dict[str, Any] | None = None) -> str:
    """A sweep of dense twins and SET, all waiting."""
    trials = []
    for seed in range(seeds):
        for arm, one in (("dense", spec(seed)), ("sparse", spec(seed, 0.1))):
            trials.append(
                SweepTrial(
                    ordinal=len(trials),
                    key=one.spec_id * 5,
                    spec_id=one.spec_id,
                    spec=one.to_json(),
                    arm=arm,
                    twin_key=spec(seed).spec_id * 5 if arm == "sparse" else None,
                )
            )
    with open_ledger(home) as ledger:
        ledger.create_sweep(
            sweep, sweep.rpartition("-")[0], sweep.rpartition("-")[2] * 8, "name: demo\n", {"measure": measure or {"level": "none"}}, trials
        )
    return sweep


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a program that is not a terminal's and reads no settings but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARSEFLEET_", "MLFLOW_")) or k == "SPARSEFLEET_CACHE"}
    return {**kept, "SPARSEFLEET_HOME": str(home), **more}


def run_program(*args: str, home: Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """``sparsefleet ARGS`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sparsefleet.cli", *args],
        capture_output=True,
        text=True,
        env=environment(home, **more),
        cwd=cwd,
        timeout=120,
    )
