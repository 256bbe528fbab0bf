"""Timings that follow from raw samples, in a ledger; made without a clock."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from cli_home import fill

from sparsefleet.ledger import open_ledger
from sparsefleet.ledger.rows import TrialRow
from sparsefleet.measure.assemble import timing_of
from sparsefleet.measure.samples import Body, Samples, reference


def samples(key: str, speedup: float, noise: float, control: float) -> Samples:
    """50 rounds on a machine without neighbours: dense takes 10 ms a call, its second copy ``control`` times as long."""
    rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
    per_call = {"dense": 0.010, "sparse": 0.010 / speedup, "second": 0.010 * control}
    seconds = {side: [float(s * np.exp(noise * z)) for z in rng.standard_normal(50)] for side, s in per_call.items()}
    return Samples(
        key=key,
        clock="cpu-1",
        threads=1,
        n_cpus=2,
        tick_s=0.01,
        inputs=4,
        calls=dict.fromkeys(seconds, 1),
        order=["DSE"] * 50,
        seconds=seconds,
        cpu_s=seconds,
        process_s={},
        mhz={},
        machine=[],
        rounds_because="as planned",
        warmup={"seconds": 0.5, "steady": 1.0},
        dropped=[""] * 50,
    )


def body(key: str, *, speedup: float = 2.0, op: str = "step", batch_size: int = 64, control: float = 1.0, cpu: str = "a cpu") -> bytes:
    """The raw samples of one timing at screen level."""
    job = {
        "config_key": key,
        "op": op,
        "batch_size": batch_size,
        "device": "cpu",
        "threads": 1,
        "execution": "sparse_csr",
        "dtype": "float32",
    }
    facts: dict[str, Any] = {
        "versus": "dense",
        "baseline": "dense_eager",
        "tried": {"dense": [{"name": "dense_eager", "median_s": 0.01}]},
        "rival_params": None,
        "rival_note": "",
        "notes": [],
        "theory": {"flop_ratio": 10.0, "bytes_ratio": 5.0, "roofline_speedup": 5.0, "limit_s": 0.0005},
        "correctness": {},
        "conditions": [],
        "memory": {"peak_bytes": 3 << 20, "dense_peak_bytes": 9 << 20, "peak_kind": "VmHWM"},
        "earlier": [],
    }
    machine = {"id": f"fp:{cpu}", "stable": {"cpu": {"model": cpu}, "software": {"packages": {"torch": "2.15"}}}}
    return Body(job, "screen", [samples(key, speedup, 0.003, control)], facts, machine).to_bytes()


def record(trial: TrialRow, accuracy: float) -> dict[str, Any]:
    """What the report reads of a trial that succeeded."""
    sparse = trial.arm == "sparse"
    execution = "sparse_csr" if sparse else "dense"
    layer = {"name": "0", "shape": [64, 64], "execution": execution, "nnz_asked": 409, "nnz": 409}
    return {
        "schema": "sf-record/1",
        "trial_key": trial.key,
        "spec_id": trial.spec_id,
        "state": "SUCCEEDED",
        "spec": trial.spec,
        "wall_s": 1.0,
        "curves": {},
        "artifacts": [],
        "device": {"device": "cpu", "class": "cpu", "threads": 1},
        "counts": {
            "layers": [layer],
            "nnz_weights": 409,
            "params": 1000,
            "total_params_model": 4800,
            "resident_bytes": 9000,
            "density_realised": 0.1 if sparse else 1.0,
        },
        "accuracy": {"metric": "top1", "test": accuracy, "test_loss": 0.3, "n_test": 360, "chance": 0.1, "diverged": False},
    }


def measured_home(home: Path, *bodies: bytes, level: str = "screen", seeds: int = 2) -> str:
    """A sweep whose trials succeeded, and whose sparse row carries these timings."""
    sweep = fill(home, seeds=seeds, measure={"level": level})
    with open_ledger(home) as ledger:
        rows = list(ledger.trials(sweep))
        for i, trial in enumerate(rows):
            attempt = ledger.lease(trial.key, sweep, "here")
            assert attempt is not None
            assert ledger.commit(trial.key, attempt, record(trial, 0.9 + i / 100))
        keys = [trial.key for trial in rows if trial.arm == "sparse"]
        for one in bodies:
            timing = timing_of(Body.from_bytes(one), reference(one)).model_dump(mode="json")
            ledger.commit_timing(sweep, timing["config_key"], keys, "SUCCEEDED", [timing], one)
        ledger.set_sweep_state(sweep, "DONE")
    return sweep
