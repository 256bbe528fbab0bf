"""sf-record/1: what is known of one trial when it ends. Strict; no NaN, no unknown key. Imports no torch."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RECORD_SCHEMA = "sf-record/1"
WITHOUT_SECRETS = frozenset({"spec", "plugins", "code", "data", "artifacts"})
"""Parts that are not redacted: the product wrote them, a grid with a secret is refused, and other trials are found by them."""


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
    topology: str = Field("free", description="what the layer can hold; the method's choices are projected onto it")
    nnz_effective: int | None = Field(None, description="on a path from an input to an output; None where it is not computed")
    fan_in_cv: float | None = Field(None, description="standard deviation over mean of the connections per output unit; None for dense")
    fan_out_cv: float | None = Field(None, description="standard deviation over mean of the connections per input unit; None for dense")
    value_bits: int | None = Field(None, description="bits of one weight where the trained network is stored")


class Counts(_Strict):
    """Sizes, counted from nnz by us."""

    layers: list[LayerCount]
    nnz_weights: int = Field(description="stored weights of the prunable set")
    total_weights_prunable: int = Field(description="weights of the prunable set if it were dense")
    total_params_model: int = Field(description="trainable parameters of the model if it were dense")
    params: int = Field(description="trainable parameters that are live")
    resident_bytes: int
    resident_by_role: dict[str, int] = Field(description="values, indices, masks, other parameters, buffers, optimizer")
    stored_bytes: int | None = Field(
        None, description="of the trained network in a file: values at their bits, scales, positions, the rest"
    )
    compression: float | None = Field(None, description="bytes of the same network stored dense, over stored_bytes")
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
    before_fine_tuning: float | None = Field(
        None, description="the test metric right after the last pruning of trained weights; nothing is chosen by it"
    )
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


Verdict = Literal["FASTER", "SLOWER", "SAME", "INCONCLUSIVE", "NOT_TRUSTWORTHY", "NONE"]


class BaselineTried(_Strict):
    """A form of the dense net that was a candidate for the baseline."""

    name: str
    median_s: float | None = None
    compile_s: float | None = None
    why_not: str = Field("", description="why it is not the baseline")


class Timing(_Strict):
    """One measured configuration; a pure function of the raw samples (sparsefleet.measure.assemble). Seconds are per call."""

    protocol: str
    level: Literal["screen", "publish"]
    config_key: str
    op: Literal["forward", "step"]
    batch_size: int
    dtype: str
    device: str
    threads: int
    execution: str
    baseline: str = Field(description="dense_eager, dense_compiled, or none where there is no dense side")
    baselines_tried: list[BaselineTried] = Field(default_factory=list)
    dense_s: dict[str, float] = Field(description="median, p10, p90, mad; empty without a dense side")
    sparse_s: dict[str, float]
    rival_s: dict[str, float] = Field(default_factory=dict, description="of the small-dense net: equal trainable parameters")
    speedup: float | None
    ci95: tuple[float, float] | None
    verdict: Verdict
    reasons: list[str] = Field(default_factory=list, description="why it is NOT_TRUSTWORTHY")
    rival_speedup: float | None = None
    rival_ci95: tuple[float, float] | None = None
    rival_verdict: Verdict = "NONE"
    rival_reasons: list[str] = Field(default_factory=list, description="why the comparison with it is NOT_TRUSTWORTHY")
    rival_vs_dense: float | None = Field(None, description="speed-up of the small-dense net over the dense one")
    rival_vs_dense_ci95: tuple[float, float] | None = None
    rival_vs_dense_verdict: Verdict = "NONE"
    rival_params: int | None = None
    rival_note: str = ""
    aa_ratio: float
    drift: float
    rounds: int
    kept: int
    dropped: dict[str, int]
    processes: int
    between: float | None = Field(None, description="largest over smallest speed-up of the processes, minus 1")
    warmup_s: float
    prepare_s: float | None = Field(None, description="conversion to the sparse storage")
    breakeven_calls: float | None = Field(None, description="calls after which the conversion has paid")
    method_share: float = Field(0.0, description="share of sparse_s that is the method's own work at some steps, spread over all")
    correctness: dict[str, float]
    theory: dict[str, float | str] = Field(default_factory=dict)
    memory: dict[str, float | str] = Field(default_factory=dict)
    samples_ref: str
    earlier: list[str] = Field(default_factory=list, description="raw samples of its other measurements, which do not count")
    fingerprint: str
    attempt: int = 1
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
