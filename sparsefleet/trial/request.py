"""What a trial needs besides its spec; crosses process borders as JSON. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sparsefleet.sparsity.vocabulary import Frozen
from sparsefleet.trial.spec import TrialSpec


class TrialRequest(Frozen):
    """One attempt of one trial on one device."""

    spec: TrialSpec
    trial_key: str
    attempt: int = 1
    workdir: Path
    data_root: Path
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    start: Path | None = Field(None, description="the folder with the artifacts of the trial that the spec starts from")
    checkpoint_every_s: float = Field(30.0, gt=0)
    code: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
