"""What can stand in a grid: its places, and states and assignments of them.

A *state* is a nested dict, one entry per base key. A choice between named things (a plugin, an optimizer, a schedule) is a dict with one key, its name:
``{"model": {"mlp": {"hidden": [2000]}}}``. An *assignment* sets one place of a state. Named things are replaced as a whole; blocks (``train``, ``init``,
``resources``, ``limits``) are merged key by key, which is what lets a method override ``train.epochs`` and leave the batch size alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, Field

from sparsefleet.trial import spec as ts

Path = tuple[str, ...]
State = dict[str, Any]
PLAIN_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
"""What Ray takes as the value of a label; no operator of its selectors is one."""
LABEL_KEY = r"^([A-Za-z0-9.-]{1,200}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"


class Assignment(NamedTuple):
    """Sets one place of a state."""

    path: Path
    value: Any


def _shareable(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a share below 1, or a whole number of devices")
    return gpus


class Resources(ts.Frozen):
    """What one trial holds while it runs."""

    cpus: int = Field(1, ge=1, le=1024)
    gpus: Annotated[float, AfterValidator(_shareable)] = Field(0.0, ge=0, le=64, description="a share below 1 lets trials share a device")
    memory_mib: int | None = Field(None, ge=1, le=2**40, description="reserved on the node, so that large trials do not meet; not enforced")
    accelerator: str | None = Field(None, pattern=PLAIN_NAME, description="the type of GPU, by Ray's name, such as H100")
    labels: dict[Annotated[str, Field(pattern=LABEL_KEY)], Annotated[str, Field(pattern=PLAIN_NAME)]] | None = Field(
        None, max_length=16, description="what a node must be labelled with, such as {zone: a}"
    )


class Limits(ts.Frozen):
    """When a trial is ended from outside, and how often it saves."""

    timeout_s: float = Field(3600.0, gt=0)
    checkpoint_every_s: float = Field(60.0, gt=0)
    memory_mib: int | None = Field(
        None,
        ge=1,
        le=2**40,
        description="beyond what its code takes; a trial that holds more ends OOM, after one more try with nothing beside it",
    )


class Measure(ts.Frozen):
    """What is timed after the training."""

    level: Literal["none", "screen", "publish"] = "screen"
    batch_sizes: tuple[Literal["train"] | Annotated[int, Field(ge=1, le=2**20)], ...] | None = Field(
        None,
        min_length=1,
        description="each with a verdict of its own; train is the training's; default: train at screen, train, 1, 32, 256 at publish",
    )
    ops: tuple[Literal["forward", "step"], ...] = Field(("forward", "step"), min_length=1)
    baselines: tuple[Literal["dense_eager", "dense_compiled"], ...] = Field(
        ("dense_eager", "dense_compiled"),
        min_length=1,
        description="forms of the dense nets that are tried; the fastest correct one is the baseline",
    )


@dataclass(frozen=True)
class Slot:
    """One place of a grid: ``plugin`` (of a family), ``union`` (a core vocabulary), ``block`` (keys) or ``value``."""

    kind: Literal["plugin", "union", "block", "value"]
    family: str = ""
    options: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    fields: Mapping[str, Slot] = field(default_factory=dict)
    owner: type[BaseModel] | None = None
    name: str = ""


def _options(annotated: Any) -> dict[str, type[BaseModel]]:
    classes = get_args(get_args(annotated)[0])
    return {cls.model_fields["kind"].default: cls for cls in classes}


def _values(cls: type[BaseModel], **special: Slot) -> dict[str, Slot]:
    return {name: special.get(name) or Slot("value", owner=cls, name=name) for name in cls.model_fields}


class Lottery(ts.Frozen):
    """``levels`` trials, each of which prunes what the one before has come to and trains it again; the first starts from the dense twin."""

    levels: int = Field(ge=1, le=100, description="level i keeps density ** (i / levels)")
    rewind: Literal["weights", "learning-rate"] = "weights"
    to: float = Field(0.0, ge=0, lt=1, description="share of the training that is gone back to")


class _GridOnly(ts.Frozen):
    start: Literal["twin"] | None = None
    lottery: Lottery | None = None


_PARTS = {
    "pruner": Slot("plugin", "pruner"),
    "rewirer": Slot("plugin", "rewirer"),
    "schedule": Slot("union", "schedule", _options(ts.Schedule)),
    "pattern": Slot("union", "pattern", _options(ts.Pattern)),
    "fine_tune": Slot(
        "block",
        owner=ts.FineTune,
        fields={
            "optimizer": Slot("union", "optimizer", _options(ts.Optimizer)),
            "lr_schedule": Slot("union", "lr_schedule", _options(ts.LrSchedule)),
        },
    ),
}
METHOD = Slot(
    "block",
    owner=ts.Method,
    fields={**{name: slot for name, slot in _values(ts.Method, **_PARTS).items() if name != "rewind"}, **_values(_GridOnly)},
)
ROOT: dict[str, Slot] = {
    **{family: Slot("plugin", family) for family in ("dataset", "model", "layer", "connectivity", "activation")},
    "method": METHOD,
    "density": Slot("value", owner=ts.TrialSpec, name="density"),
    "optimizer": Slot("union", "optimizer", _options(ts.Optimizer)),
    "train": Slot("block", owner=ts.Train, fields=_values(ts.Train, lr_schedule=Slot("union", "lr_schedule", _options(ts.LrSchedule)))),
    "init": Slot("block", owner=ts.Init, fields=_values(ts.Init)),
    "validation": Slot("value", owner=ts.TrialSpec, name="validation"),
    "resources": Slot("block", owner=Resources, fields=_values(Resources)),
    "limits": Slot("block", owner=Limits, fields=_values(Limits)),
}
PLAIN_METHOD: State = {
    "pruner": None,
    "rewirer": None,
    "distribution": "uniform",
    "schedule": None,
    "pattern": {"unstructured": {}},
    "keep_dense": [],
    "convert_at": 1.0,
    "fine_tune": None,
    "start": None,
    "lottery": None,
}
REQUIRED = ("dataset", "model", "optimizer", "train")


class Unplaced(ValueError):
    """A dotted name leads into something that does not stand there."""


def assign(state: State, assignment: Assignment) -> State:
    """A copy of ``state`` with one place set; what is not touched is shared.

    Raises:
        Unplaced: the place belongs to a plugin or option that ``state`` does not name.
    """
    path, value = assignment
    new = dict(state)
    here, slot = new, Slot("block", fields=ROOT)
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if slot.kind in ("plugin", "union"):
            if part not in here:
                standing = next(iter(here), "nothing")
                raise Unplaced(f"{'.'.join(path)} needs {'.'.join(path[:depth])} to be {part!r}; here it is {standing!r}")
            if last:
                raise Unplaced(f"{'.'.join(path)} names no parameter")
            slot = Slot("block")
        else:
            slot = slot.fields.get(part, Slot("value"))
        if last:
            here[part] = value
        else:
            here[part] = dict(here.get(part) or {})
            here = here[part]
    return new


def value_at(state: State, path: Path) -> Any:
    """What stands at ``path``, or None."""
    here: Any = state
    for part in path:
        if not isinstance(here, dict) or part not in here:
            return None
        here = here[part]
    return here


def tagged(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``{"cubic": {"end": 0.5}}`` as the spec writes it: ``{"kind": "cubic", "end": 0.5}``."""
    if not value:
        return None
    ((name, parameters),) = value.items()
    return {"kind": name, **parameters}


def plugin_ref(value: Mapping[str, Any]) -> ts.PluginRef:
    """``{"mlp": {...}}`` as a reference."""
    ((name, parameters),) = value.items()
    return ts.PluginRef(name=name, params=parameters)


def method_of(method: Mapping[str, Any] | None) -> ts.Method:
    """The spec's method of a state's ``method`` block; no block is no method."""
    given = {key: value for key, value in (method or {}).items() if key not in _GridOnly.model_fields and value is not None}
    for family in ("pruner", "rewirer"):
        if family in given:
            given[family] = plugin_ref(given[family])
    for vocabulary in ("schedule", "pattern"):
        if vocabulary in given:
            given[vocabulary] = tagged(given[vocabulary])
    if "fine_tune" in given:
        given["fine_tune"] = {key: tagged(value) for key, value in given["fine_tune"].items()}
    return ts.Method(**given)
