"""The closed vocabularies of the core: schedules, patterns, distributions. Any pruner combines with any of them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Immutable, strict about keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OneShot(Frozen):
    """All at once at ``at``."""

    kind: Literal["one-shot"] = "one-shot"
    at: float = Field(0.0, ge=0, le=1, description="share of the training")


class _Gradual(Frozen):
    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> _Gradual:
        fields = dict(self)
        if fields["begin"] >= fields["end"]:
            raise ValueError(f"begin must be below end, got {fields['begin']:g} and {fields['end']:g}")
        return self


class Linear(_Gradual):
    """Sparsity grows linearly from begin to end."""

    kind: Literal["linear"] = "linear"
    begin: float = Field(0.0, ge=0, le=1, description="share of the training")
    end: float = Field(0.75, gt=0, le=1, description="share of the training")
    every: int = Field(20, ge=1, description="steps between prunings")


class Cubic(_Gradual):
    """Sparsity grows by arXiv 1710.01878, Eq. 1."""

    kind: Literal["cubic"] = "cubic"
    begin: float = Field(0.0, ge=0, le=1, description="share of the training")
    end: float = Field(0.75, gt=0, le=1, description="share of the training")
    every: int = Field(20, ge=1, description="steps between prunings")


class Iterative(_Gradual):
    """``levels`` equal ratios of density, evenly spaced from begin to end."""

    kind: Literal["iterative"] = "iterative"
    begin: float = Field(0.0, ge=0, le=1, description="share of the training")
    end: float = Field(0.75, gt=0, le=1, description="share of the training")
    levels: int = Field(5, ge=1)


Schedule = Annotated[OneShot | Linear | Cubic | Iterative, Field(discriminator="kind")]


class Unstructured(Frozen):
    """Any connection may go."""

    kind: Literal["unstructured"] = "unstructured"


class NOfM(Frozen):
    """Of every ``m`` consecutive inputs, ``n`` stay (arXiv 2104.08378)."""

    kind: Literal["n:m"] = "n:m"
    n: int = Field(2, ge=1)
    m: int = Field(4, ge=2)


class Block(Frozen):
    """Whole tiles stay or go; a ragged edge is a smaller tile."""

    kind: Literal["block"] = "block"
    rows: int = Field(4, ge=1)
    cols: int = Field(4, ge=1)
    score: Literal["mean", "max"] = Field("mean", description="a tile's score: the mean or the highest of its connections'")


class Row(Frozen):
    """Whole output units stay or go (their bias is not touched; ``neuron`` removes the unit itself)."""

    kind: Literal["row"] = "row"


class Channel(Frozen):
    """Whole inputs stay or go: columns of a Linear, input channels of a Conv2d."""

    kind: Literal["channel"] = "channel"


class Neuron(Frozen):
    """Whole units go: an output neuron of a Linear, a filter of a Conv2d, with its bias, its norm's entries and the columns that read it.

    Units that an addition couples (a residual) go together. The network's inputs and outputs stay. ``sparsefleet.nn.compact`` does it.
    """

    kind: Literal["neuron"] = "neuron"
    counts: Literal["weights", "units"] = Field(
        "weights",
        description="what density is the kept share of: prunable weights (the units are solved for it), or units of each layer, "
        "which leaves about its square of the weights",
    )
    p: float = Field(
        1.0, gt=0, description="a unit's score is (sum of score ** p) ** (1 / p) over its weights; with magnitude, their L_p norm"
    )


Pattern = Annotated[Unstructured | NOfM | Block | Row | Channel | Neuron, Field(discriminator="kind")]
Distribution = Literal["uniform", "er", "erk", "global"]


def pattern_label(pattern: Pattern) -> str:
    """Short name for tables, e.g. ``2:4`` or ``block4x4``."""
    if isinstance(pattern, NOfM):
        return f"{pattern.n}:{pattern.m}"
    if isinstance(pattern, Block):
        return f"block{pattern.rows}x{pattern.cols}" + ("" if pattern.score == "mean" else f"-{pattern.score}")
    return pattern.kind
