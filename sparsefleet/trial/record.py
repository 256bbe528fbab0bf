"""sf-record/1: what is known of one trial when it ends. Strict; no NaN, no unknown key. Imports no torch."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RECORD_SCHEMA = "sf-record/1"


class State(str, Enum):
    """States of a trial in the ledger."""

    PENDING = "PENDING"
    LEASED = "LEASED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    INCORRECT = "INCORRECT"
    DIVERGED = "DIVERGED"
    PLUGIN_ERROR = "PLUGIN_ERROR"
    CRASHED = "CRASHED"
    POISONED = "POISONED"
    TIMEOUT = "TIMEOUT"
    OOM = "OOM"
    LOST = "LOST"
    CANCELLED = "CANCELLED"
    INVALID = "INVALID"
    INFRA_FAILED = "INFRA_FAILED"


TERMINAL = frozenset(set(State) - {State.PENDING, State.LEASED, State.RUNNING, State.LOST})
FAILED = frozenset(TERMINAL - {State.SUCCEEDED, State.DIVERGED, State.CANCELLED})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PluginUsed(_Strict):
    """A plugin that took part, and the exact code it was."""

    family: str
    name: str
    distribution: str
    version: str
    digest: str


class AttemptEnd(_Strict):
    """One attempt of the trial, as the driver saw it."""

    n: int
    end: str
    node: str
    t_s: float


class LayerCount(_Strict):
    """Connections of one prunable module, at the end."""

    name: str
    shape: tuple[int, ...]
    execution: str
    nnz_asked: int
    nnz: int
    nnz_effective: int | None = Field(None, description="on a path from an input to an output; None where it is not computed")
    fan_in_cv: float | None = Field(None, description="standard deviation over mean of the connections per output unit; None for dense")
    fan_out_cv: float | None = Field(None, description="standard deviation over mean of the connections per input unit; None for dense")


class Counts(_Strict):
    """Sizes, counted from nnz by us."""

    layers: list[LayerCount]
    nnz_weights: int = Field(description="stored weights of the prunable set")
    total_weights_prunable: int = Field(description="weights of the prunable set if it were dense")
    total_params_model: int = Field(description="trainable parameters of the model if it were dense")
    params: int = Field(description="trainable parameters that are live")
    resident_bytes: int
    resident_by_role: dict[str, int] = Field(description="values, indices, masks, other parameters, buffers, optimizer")
    density_asked: float
    density_realised: float = Field(description="of the prunable set")
    density_model: float = Field(description="of the whole model")


class Accuracy(_Strict):
    """Primary metric: the last checkpoint on the test set, evaluated once."""

    metric: Literal["top1", "mse"]
    test: float | None
    test_loss: float | None
    test_evals: int
    n_test: int
    best_on_val: float | None
    last_on_val: float | None
    epochs: int
    steps: int
    diverged: bool
    chance: float = Field(description="what a diverged seed counts as")


class Curve(_Strict):
    """One metric over the training."""

    steps: list[int]
    values: list[float]


class ArtifactRef(_Strict):
    """A file in the artifact store."""

    name: str
    sha256: str
    bytes: int


class Fact(_Strict):
    """Something that happened once, e.g. the conversion of the storage."""

    step: int
    what: str
    values: dict[str, float] = Field(default_factory=dict)


class Timing(_Strict):
    """One measured configuration; see sparsefleet.measure."""

    protocol: str
    config_key: str
    op: Literal["forward", "step"]
    batch_size: int
    dtype: str
    device: str
    threads: int
    execution: str
    baseline: str
    dense_s: dict[str, float]
    sparse_s: dict[str, float]
    speedup: float | None
    ci95: tuple[float, float] | None
    aa_ratio: float
    rounds: int
    kept: int
    dropped: dict[str, int]
    correctness: dict[str, float]
    samples_ref: str
    fingerprint: str
    note: str = ""


class Record(_Strict):
    """One trial, complete."""

    schema_: Literal["sf-record/1"] = Field("sf-record/1", alias="schema")
    trial_key: str
    spec_id: str
    state: State
    reason: str | None = None
    attempt: int = 1
    attempts_log: list[AttemptEnd] = Field(default_factory=list)
    spec: dict[str, Any]
    plugins: list[PluginUsed]
    code: dict[str, str]
    data: dict[str, str]
    device: dict[str, Any]
    counts: Counts | None = None
    accuracy: Accuracy | None = None
    curves: dict[str, Curve] = Field(default_factory=dict)
    facts: list[Fact] = Field(default_factory=list)
    artifacts: list[ArtifactRef] = Field(default_factory=list)
    timings: list[Timing] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    started: str = Field(description="UTC, ISO 8601")
    ended: str
    wall_s: float
    phases_s: dict[str, float] = Field(default_factory=dict, description="data, build, train, evaluate, save")

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)
