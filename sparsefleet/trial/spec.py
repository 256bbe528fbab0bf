"""TrialSpec: one point of a grid with every value fixed, as canonical JSON with a digest. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sparsefleet.sparsity.vocabulary import (
    Block as Block,
    Channel as Channel,
    Cubic as Cubic,
    Distribution as Distribution,
    Frozen as Frozen,
    Iterative as Iterative,
    Linear as Linear,
    Neuron as Neuron,
    NOfM as NOfM,
    OneShot as OneShot,
    Pattern as Pattern,
    Row as Row,
    Schedule as Schedule,
    Unstructured as Unstructured,
    pattern_label,
)

SPEC_SCHEMA = "sf-spec/1"


class PluginRef(Frozen):
    """A plugin by name with all of its hyper-parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """The bare name."""
        return self.name


class Sgd(Frozen):
    """torch.optim.SGD."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    dampening: float = Field(0.0, ge=0)


class Adam(Frozen):
    """torch.optim.Adam."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class AdamW(Frozen):
    """torch.optim.AdamW."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class RMSprop(Frozen):
    """torch.optim.RMSprop."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: float = Field(gt=0)
    alpha: float = Field(0.99, gt=0, lt=1)
    momentum: float = Field(0.0, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


Optimizer = Annotated[Sgd | Adam | AdamW | RMSprop, Field(discriminator="kind")]


class ConstantLr(Frozen):
    """The optimizer's learning rate throughout."""

    kind: Literal["constant"] = "constant"


class StepLr(Frozen):
    """Times ``factor`` after every ``every`` steps."""

    kind: Literal["step"] = "step"
    every: int = Field(ge=1, description="optimizer steps")
    factor: float = Field(0.1, gt=0, le=1)


class MultiStepLr(Frozen):
    """Times ``factor`` at each of the given shares of the training."""

    kind: Literal["multi-step"] = "multi-step"
    at: tuple[float, ...] = Field(min_length=1, description="shares of the training in (0, 1)")
    factor: float = Field(0.1, gt=0, le=1)


class CosineLr(Frozen):
    """Cosine from the optimizer's learning rate to ``final`` times it, after a linear warm-up."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the training")
    final: float = Field(0.0, ge=0, le=1)


LrSchedule = Annotated[ConstantLr | StepLr | MultiStepLr | CosineLr, Field(discriminator="kind")]


class Train(Frozen):
    """The training budget and its settings."""

    epochs: int = Field(ge=0, le=100_000)
    batch_size: int = Field(64, ge=1)
    drop_last: bool = False
    max_steps: int | None = Field(None, ge=0, description="ends the training early; None means epochs decide")
    weight_decay: float = Field(0.0, ge=0)
    lr_schedule: LrSchedule = ConstantLr()
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = "fp32"
    augment: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    test_epoch: int | None = Field(None, ge=1, description="the epoch, declared in advance, whose network is tested; None: the last")


class Init(Frozen):
    """Uniform in ±1/sqrt(fan-in), as torch.nn.Linear; ``fan_in`` says which fan-in."""

    fan_in: Literal["dense", "live"] = "dense"
    draw: int = Field(0, ge=0, description="another number draws other initial weights, and nothing else changes")


class FineTune(Frozen):
    """From the last pruning on: a new optimizer, and a learning rate schedule that starts there."""

    optimizer: Optimizer
    lr_schedule: LrSchedule = ConstantLr()


class Rewind(Frozen):
    """A level of a lottery ticket: the trial that it starts from is pruned, and then trained again from ``to`` on.

    ``weights`` takes the surviving weights back to what they were at ``to`` (arXiv 1803.03635 with 0, 1912.05671 above); ``learning-rate``
    keeps them and takes back the learning rate schedule alone (arXiv 2003.02389, section 3).
    """

    what: Literal["weights", "learning-rate"] = "weights"
    to: float = Field(0.0, ge=0, lt=1, description="share of the training")
    level: int = Field(1, ge=1)
    levels: int = Field(1, ge=1)


class Start(Frozen):
    """Another trial that this one starts from, and what it takes of it.

    ``weights`` are those of a dense twin; ``ticket`` its network, which ``Method.rewind`` prunes; ``mask`` its connections alone, and
    ``shuffled-mask`` as many connections per layer at random sites.
    """

    trial: str = Field(description="its spec_id")
    row: str = Field(description="the spec_id that it has with seed 0: the same for every seed")
    gives: Literal["weights", "ticket", "mask", "shuffled-mask"] = "weights"


class Method(Frozen):
    """How the network becomes or stays sparse: a pruner or a rewirer, never both; neither means dense."""

    pruner: PluginRef | None = None
    rewirer: PluginRef | None = None
    distribution: Distribution = "uniform"
    schedule: Schedule | None = None
    pattern: Pattern = Unstructured()
    keep_dense: tuple[str, ...] = Field((), description="'first', 'last', a kind (Conv2d), or names of modules: they stay dense")
    convert_at: float = Field(1.0, gt=0, le=1, description="share of the training at which a pruned net moves to its layer")
    fine_tune: FineTune | None = Field(None, description="how the training goes on after the last pruning; null: as before")
    rewind: Rewind | None = Field(None, description="the trial is a level of a lottery ticket")

    @model_validator(mode="after")
    def _one_kind(self) -> Method:
        if self.pruner and self.rewirer:
            raise ValueError("a method has a pruner or a rewirer, not both")
        if self.rewirer and self.schedule:
            raise ValueError("schedule belongs to a pruner; a rewirer keeps its density")
        if self.rewind and self.pattern.kind == "neuron":
            raise ValueError("a lottery takes single weights back, and pattern neuron removes whole units")
        if self.pruner and self.pattern.kind == "neuron" and self.distribution not in ("uniform", "global"):
            raise ValueError(f"pattern neuron spreads units, and distribution {self.distribution!r} weights; use uniform or global")
        if self.rewirer and self.distribution == "global":
            raise ValueError("distribution 'global' needs scores, so it belongs to a pruner; use uniform, er or erk")
        if not self.pruner and (self.fine_tune or self.rewind):
            raise ValueError("fine_tune and lottery follow a pruning, so they belong to a pruner")
        if self.rewind and (self.schedule or self.fine_tune):
            raise ValueError("each level of a lottery prunes once; schedule and fine_tune do not go with it")
        return self

    @property
    def label(self) -> str:
        """Canonical label, e.g. ``magnitude+cubic``, ``set``, ``dense``."""
        if self.pruner:
            parts = [self.pruner.name, self._when]
            if self.distribution == "global":
                parts.append("global")
            return "+".join(parts)
        return self.rewirer.name if self.rewirer else "dense"

    @property
    def _when(self) -> str:
        if self.rewind:
            return "lottery" if self.rewind.what == "weights" else "lr-rewind"
        return self.schedule.kind if self.schedule else "one-shot"

    @property
    def variant(self) -> str:
        """What differs from the method's plain form: pattern and distribution; empty if nothing does."""
        parts = [] if self.pattern.kind == "unstructured" else [pattern_label(self.pattern)]
        if self.distribution in ("er", "erk"):
            parts.append(self.distribution)
        if self.fine_tune:
            parts.append(f"fine-tuned by {self.fine_tune.optimizer.kind}")
        if self.rewind:
            parts.append(f"level {self.rewind.level} of {self.rewind.levels}")
        return ",".join(parts)


class TrialSpec(Frozen):
    """One trial. Two specs with equal canonical JSON are the same trial."""

    schema_: Literal["sf-spec/1"] = Field("sf-spec/1", alias="schema")
    dataset: PluginRef
    model: PluginRef
    layer: PluginRef = PluginRef(name="dense")
    connectivity: PluginRef = PluginRef(name="random")
    activation: PluginRef = PluginRef(name="relu")
    method: Method = Method()
    density: float = Field(1.0, gt=0, le=1, description="kept share of the prunable weights")
    narrow_to_density: float | None = Field(
        None, gt=0, lt=1, description="small-dense: narrow the model to the trainable parameters it would have at this density"
    )
    optimizer: Optimizer
    train: Train
    init: Init = Init()
    validation: float = Field(0.1, ge=0, lt=1, description="share of the training set; 0 forbids selection")
    seed: int = Field(0, ge=0, lt=2**31)
    start: Start | None = Field(None, description="the trial that this one starts from")

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _consistent(self) -> TrialSpec:
        sparse = self.method.pruner is not None or self.method.rewirer is not None
        if sparse and self.density >= 1:
            raise ValueError("a sparse method needs a density below 1")
        if not sparse and self.density < 1:
            raise ValueError("density below 1 needs a method: a pruner or a rewirer ('static' keeps a random topology)")
        if (self.start is not None and self.start.gives == "ticket") != (self.method.rewind is not None):
            raise ValueError("a level of a lottery starts from the level before it, and nothing else does")
        return self

    @property
    def is_sparse(self) -> bool:
        """True if a pruner or rewirer acts."""
        return self.method.pruner is not None or self.method.rewirer is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every default spelled out."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def spec_id(self) -> str:
        """12 hex digits of the sha256 of the canonical JSON: what people see."""
        return digest(self.to_json())[:12]


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
