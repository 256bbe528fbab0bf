"""Real trials, trained here in this process as a sweep would train them: from a grid through its keys to model, masks and record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefleet.fleet.enqueue import sweep_trials
from sparsefleet.grid.load import load_text
from sparsefleet.ledger import SweepTrial
from sparsefleet.measure.config import MeasureJob, Op, groups
from sparsefleet.registry import catalog
from sparsefleet.trial import files
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.run import run_trial

GRID = """
name: trained
dataset: digits
model: {mlp: {hidden: [256, 256]}}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
train: {epochs: 2, batch_size: 64}
seeds: 1
density: 0.05
layer: csr
method: {rewirer: set}
control_arms: []
"""


@dataclass(frozen=True)
class Trained:
    """A trial that ended, as ``groups`` wants it."""

    trial: SweepTrial
    record: dict[str, Any]
    folder: Path

    @property
    def key(self) -> str:
        """The trial key."""
        return self.trial.key

    @property
    def twin_key(self) -> str | None:
        """The dense twin's."""
        return self.trial.twin_key

    @property
    def rival_key(self) -> str | None:
        """The small-dense trial's."""
        return self.trial.rival_key

    @property
    def spec(self) -> dict[str, Any]:
        """As JSON."""
        return self.trial.spec

    @property
    def model(self) -> Path:
        """The saved network."""
        return self.folder / files.MODEL

    def jobs(self, batch_sizes: Sequence[int], ops: Sequence[Op]) -> list[MeasureJob]:
        """What a sweep would time of it."""
        return groups([self], batch_sizes, ops)


def grid_trials(text: str, data: Path) -> list[SweepTrial]:
    """All trials of a grid, twins included, with their keys."""
    plugins = catalog()
    return list(sweep_trials(load_text(text, "benchmark.yaml", catalog=plugins), plugins, data))


def train(trial: SweepTrial, folder: Path, start: Path | None = None) -> Trained:
    """Trains one trial in ``folder``.

    Raises:
        RuntimeError: it did not succeed.
    """
    place = {name: trial.request[name] for name in ("data_root", "device", "threads", "code", "data")}
    body = {"spec": trial.spec, "trial_key": trial.key, "workdir": folder, "start_weights": start, **place}
    record = run_trial(TrialRequest.model_validate(body))
    if record.state.value != "SUCCEEDED":
        raise RuntimeError(f"{trial.spec_id} ended {record.state.value}: {record.reason}")
    return Trained(trial, record.to_json(), folder)


def sparse_net(folder: Path, text: str = GRID) -> Trained:
    """The sparse trial of ``text``, trained."""
    trial = next(one for one in grid_trials(text, folder) if one.twin_key)
    return train(trial, folder / "trial")
