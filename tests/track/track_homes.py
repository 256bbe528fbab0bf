"""Homes whose ledger holds committed trials with files: what an uploader finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsefleet.ledger import open_ledger
from sparsefleet.ledger.rows import SweepTrial
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.trial import files
from sparsefleet.trial.mask_picture import picture_png
from sparsefleet.trial.masks import pack_masks
from sparsefleet.trial.record import Record
from sparsefleet.trial.spec import Method, PluginRef, Sgd, Train, TrialSpec

SHAPE = (64, 64)
START, END = "2026-01-02T03:04:05.000+00:00", "2026-01-02T03:05:05.500+00:00"


def spec_of(seed: int, *, sparse: bool) -> TrialSpec:
    return TrialSpec(
        dataset=PluginRef(name="digits"),
        model=PluginRef(name="mlp", params={"hidden": [64]}),
        layer=PluginRef(name="csr" if sparse else "dense"),
        method=Method(rewirer=PluginRef(name="rigl", params={"drop_fraction": 0.3})) if sparse else Method(),
        density=0.1 if sparse else 1.0,
        optimizer=Sgd(lr=0.1, momentum=0.9),
        train=Train(epochs=2),
        seed=seed,
    )


def key_of(spec: TrialSpec) -> str:
    return spec.spec_id * 5 + "0000"


def sweep_trials(n: int) -> list[SweepTrial]:
    """``n`` trials: pairs of a dense twin and a sparse trial."""
    trials = []
    for i in range(n):
        sparse = i % 2 == 1
        spec, twin = spec_of(i // 2, sparse=sparse), spec_of(i // 2, sparse=False)
        arm, twin_key = ("sparse", key_of(twin)) if sparse else ("dense", None)
        trials.append(SweepTrial(i, key_of(spec), spec.spec_id, spec.to_json(), arm, twin_key))
    return trials


def leave_files(folder: Path, trial: SweepTrial) -> list[Path]:
    folder.mkdir(parents=True)
    torch.manual_seed(trial.ordinal)
    save_file({"0.weight": torch.randn(256, 64), "2.weight": torch.randn(10, 256)}, folder / files.MODEL)
    flat = torch.randperm(SHAPE[0] * SHAPE[1])[:400].sort().values
    pack_masks({"0": (SHAPE, flat)}, {"method": "rigl", "seed": trial.ordinal, "step": 60}).write(folder)
    (folder / files.ENVIRONMENT).write_text(json.dumps({"python": "3", "torch": torch.__version__}))
    (folder / files.MASK_STEPS).mkdir()
    for step in (0, 20, 40, 60):
        shown = torch.randperm(SHAPE[0] * SHAPE[1])[:400].sort().values
        (folder / files.picture_name("0", step)).write_bytes(picture_png(SHAPE, shown))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def record_of(trial: SweepTrial, artifacts: list[dict[str, object]], accuracy: float) -> dict[str, object]:
    steps = list(range(0, 60, 2))
    layer = {"name": "0", "shape": SHAPE, "execution": "csr", "nnz_asked": 400, "nnz": 400}
    record = Record.model_validate(
        {
            "trial_key": trial.key,
            "spec_id": trial.spec_id,
            "state": "SUCCEEDED",
            "spec": trial.spec,
            "plugins": [
                {"family": "dataset", "name": "digits", "distribution": "sparsefleet", "version": "0.1.0", "digest": "d" * 64},
                {
                    "family": "layer",
                    "name": trial.spec["layer"]["name"],
                    "distribution": "sparsefleet",
                    "version": "0.1.0",
                    "digest": "e" * 64,
                },
            ],
            "code": {"core": "c" * 64},
            "data": {"digits": "f" * 64},
            "device": {"name": "a cpu", "threads": 1},
            "counts": {
                "layers": [layer],
                "nnz_weights": 400,
                "total_weights_prunable": 4096,
                "total_params_model": 5000,
                "params": 1304,
                "resident_bytes": 12_000,
                "resident_by_role": {"values": 8000, "indices": 4000},
                "density_asked": 0.1,
                "density_realised": 400 / 4096,
                "density_model": 0.26,
            },
            "accuracy": {
                "metric": "top1",
                "test": accuracy,
                "test_loss": 0.3,
                "test_evals": 1,
                "n_test": 360,
                "best_on_val": 0.95,
                "last_on_val": 0.94,
                "epochs": 2,
                "steps": 60,
                "diverged": False,
                "chance": 0.1,
            },
            "curves": {
                name: {"steps": steps, "values": [1.0 / (1 + step) for step in steps]}
                for name in ("train_loss", "train_accuracy", "validation_loss", "lr")
            },
            "artifacts": artifacts,
            "started": START,
            "ended": END,
            "wall_s": 60.5,
            "phases_s": {"data": 0.1, "train": 60.0},
        }
    )
    return record.to_json()


def commit(home: Path, sweep: str, trial: SweepTrial) -> None:
    """Run the trial, as far as the ledger can tell."""
    store = ArtifactStore((home / "artifacts").as_uri())
    folder = home / "work" / trial.key
    refs = [store.put(path, path.relative_to(folder).as_posix()).to_json() for path in leave_files(folder, trial)]
    with open_ledger(home) as ledger:
        attempt = ledger.lease(trial.key, sweep, "here")
        assert attempt is not None
        assert ledger.commit(trial.key, attempt, record_of(trial, refs, 0.9 + trial.ordinal / 1000))


def enter_sweep(home: Path, n: int, *, sweep: str = "quick-12345678", name: str = "quick") -> list[SweepTrial]:
    trials = sweep_trials(n)
    with open_ledger(home) as ledger:
        ledger.create_sweep(sweep, name, sweep, f"name: {name}\n", {}, trials)
    return trials


def filled_home(home: Path, n: int, *, sweep: str = "quick-12345678", name: str = "quick") -> list[SweepTrial]:
    """A home with one finished sweep of ``n`` committed trials."""
    home.mkdir(parents=True, exist_ok=True)
    trials = enter_sweep(home, n, sweep=sweep, name=name)
    for trial in trials:
        commit(home, sweep, trial)
    with open_ledger(home) as ledger:
        ledger.set_sweep_state(sweep, "DONE")
    return trials


def upload(home: Path, uri: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        env["MLFLOW_TRACKING_URI"] = uri
    command = [sys.executable, "-m", "sparsefleet.track.upload", "--home", str(home), "--until-empty"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
