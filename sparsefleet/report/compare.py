"""The rows of the comparison table: one per configuration, its seeds folded into means with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import UserError, did_you_mean
from sparsefleet.ledger.rows import FAILED
from sparsefleet.report.baselines import Baselines, admitted
from sparsefleet.report.groups import METRICS, Group, Values, differences, group, leaf, leaves
from sparsefleet.report.intervals import interval, mean
from sparsefleet.report.selection import settle
from sparsefleet.report.timing import Timings
from sparsefleet.report.trust import missing, rankable

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TimingRow, TrialRow
    from sparsefleet.trial.spec import Method

_IDENTITY = (
    "dataset",
    "dataset_params",
    "model",
    "model_params",
    "method",
    "variant",
    "arm",
    "layer",
    "layer_params",
    "activation",
    "density_asked",
)
READS = ("state", "accuracy", "counts", "wall_s")
"""Keys of a record that the table is made of; the curves, most of its bytes, are not."""
_SHOWN_PATHS = ("dataset", "model", "layer", "density", "narrow_to_density", "start", "schema")

_PROJECTED = {"constant-fan-in": "per-row", "block": "per-block"}
"""How a method's choices were projected, by what the layer holds."""


def rows(
    trials: Iterable[TrialRow],
    timings: Iterable[TimingRow] | Timings = (),
    by: Sequence[str] = (),
    metric: str = "accuracy",
    *,
    margin: float | None = None,
) -> list[dict[str, Any]]:
    """One JSON row per group of trials that differ in their seed only.

    Args:
        trials: every trial of the sweep, twins and every candidate of a selection included. Of a selection the winner alone makes a row, and it is
            the winner that partners are paired with.
        timings: what was measured; a timing belongs to the rows that hold one of its keys.
        by: columns, or dotted paths of the spec, that order the rows before anything else; a figure of the clock that is not trusted
            orders nothing.
        metric: one of ``METRICS``; another metric than accuracy adds three columns.
        margin: how much worse than dense still counts as held; None for 0.005, half a point of accuracy.

    Raises:
        UserError: ``by`` or ``metric`` names nothing.
    """
    every = [admitted(trial) for trial in trials]
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}", fix=did_you_mean(metric, METRICS))
    settled = settle(every)
    groups = group(settled.trials)
    accuracy = Values(every)
    baselines = Baselines(groups, settled, accuracy, margin)
    by_key = {t.key: t for t in settled.trials}
    row_of = {t.key: g for g in groups for t in g.trials}
    measured = timings if isinstance(timings, Timings) else Timings(timings)
    values = accuracy if metric == "accuracy" else Values(every, metric)
    followers = _followers(groups)
    table = []
    for one in groups:
        row = _row(one, by_key, row_of, accuracy)
        alike = baselines.tuned_alike(one)
        row["twin_differs"] = {path: pair for path, pair in row["twin_differs"].items() if path not in alike}
        row.update(baselines.columns(one))
        row.update(measured.columns(one, followers[id(one)]))
        row["headline_missing"] = missing(row)
        if metric != "accuracy":
            mine = [v for v in map(values.of, one.trials) if v is not None]
            delta, delta_ci, _ = _paired(one, by_key, values, "twin_key")
            row.update({metric: mean(mine), f"{metric}_ci": interval(mine), f"delta_{metric}": delta, f"delta_{metric}_ci": delta_ci})
        table.append(row)
    _tell_apart(table, groups)
    _add_paths(table, groups, by)
    return sorted(table, key=lambda row: (*(_orderable(rankable(row, name)) for name in by), *_place(row)))


def _followers(groups: Sequence[Group]) -> dict[int, list[Group]]:
    """By each row's ``id()`` the rows that are compared with it, as their twin or as their small-dense rival, in the table's order."""
    holders: dict[str, list[Group]] = {}
    for one in groups:
        for trial in one.trials:
            holders.setdefault(trial.key, []).append(one)
    found: dict[int, dict[int, Group]] = {id(one): {} for one in groups}
    for one in groups:
        for key in {key for t in one.trials for key in (t.twin_key, t.rival_key) if key in holders}:
            for partner in holders[key]:
                found[id(partner)][id(one)] = one
    return {partner: list(rows.values()) for partner, rows in found.items()}


def _row(one: Group, by_key: dict[str, TrialRow], row_of: dict[str, Group], values: Values) -> dict[str, Any]:
    twin, rival = _partner(one, row_of, "twin_key"), _partner(one, row_of, "rival_key")
    scores = [v for v in map(values.of, one.trials) if v is not None]
    delta, delta_ci, n_paired = _paired(one, by_key, values, "twin_key")
    delta_rival, delta_rival_ci, _ = _paired(one, by_key, values, "rival_key")
    n_not_run = one.n_not_run
    n_ok, n_diverged = one.count("SUCCEEDED"), one.count("DIVERGED")
    accuracies: list[dict[str, Any]] = [r["accuracy"] for r in one.records if r.get("accuracy")]
    accuracy = next(iter(accuracies), {})
    method, variant = _labels(one, twin, _partner(one, row_of, "depends_on"))
    spec = one.spec
    return {
        "id": one.id,
        "method": method,
        "variant": variant,
        "arm": one.arm,
        **{name: spec[name]["name"] for name in ("dataset", "model", "layer", "activation")},
        **{f"{name}_params": spec[name].get("params", {}) for name in ("dataset", "model", "layer")},
        "density_asked": spec.get("narrow_to_density") or spec["density"],
        "density_realised": _count(one, "density_realised"),
        "trials": len(one.trials),
        "seeds": len({t.spec.get("seed", 0) for t in one.trials}),
        "n_ok": n_ok,
        "n_diverged": n_diverged,
        "n_failed": len(one.trials) - n_ok - n_diverged - n_not_run,
        "n_not_run": n_not_run,
        "failures": sorted({f"{t.state}: {t.reason}" if t.reason else t.state for t in one.trials if t.state in FAILED}),
        "twin": twin.id if twin else None,
        "rival": rival.id if rival else None,
        "metric": accuracy.get("metric", "top1"),
        "n_test": accuracy.get("n_test"),
        "accuracy": mean(scores),
        "accuracy_ci": interval(scores),
        "accuracy_by_seed": [values.of(t) for t in one.trials],
        "delta_twin": delta,
        "delta_twin_ci": delta_ci,
        "n_paired": n_paired,
        "delta_rival": delta_rival,
        "delta_rival_ci": delta_rival_ci,
        "twin_differs": _twin_differs(spec, twin),
        "params": _count(one, "params", whole=True),
        "nnz": _count(one, "nnz_weights", whole=True),
        "resident_bytes": _count(one, "resident_bytes", whole=True),
        "stored_bytes": _count(one, "stored_bytes", whole=True),
        "compression": _count(one, "compression"),
        "before_fine_tuning": _before_fine_tuning(spec, accuracies),
        "wall_s": mean([float(r["wall_s"]) for r in one.records]),
        "seed_values": [t.spec.get("seed", 0) for t in one.trials],
        "trial_ids": [t.spec_id for t in one.trials],
    }


def _partner(one: Group, row_of: dict[str, Group], field: str) -> Group | None:
    keys = [getattr(t, field) for t in one.trials]
    return next((row_of[key] for key in keys if key in row_of and row_of[key] is not one), None)


def _paired(one: Group, by_key: dict[str, TrialRow], values: Values, field: str) -> tuple[float | None, Any, int]:
    """Mean difference to the partner of the same seed, its interval, and the number of pairs."""
    pairs = [(values.of(t), values.of(by_key.get(getattr(t, field) or ""))) for t in one.trials if getattr(t, field) != t.key]
    gaps = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return mean(gaps), interval(gaps), len(gaps)


def _count(one: Group, name: str, whole: bool = False) -> Any:
    found = [r["counts"][name] for r in one.records if r.get("counts") and r["counts"].get(name) is not None]  # old ones lack the newer
    middle = mean([float(v) for v in found])
    return round(middle) if whole and middle is not None else middle


def _before_fine_tuning(spec: dict[str, Any], accuracies: list[dict[str, Any]]) -> float | None:
    """Mean test figure right after the pruning, of a row that prunes a trained network and then tunes it."""
    tuned = spec["method"].get("fine_tune") or (spec["start"] or {}).get("gives") == "weights"
    found = [a["before_fine_tuning"] for a in accuracies if tuned and a.get("before_fine_tuning") is not None]
    return mean(found)


def _labels(one: Group, twin: Group | None, source: Group | None = None) -> tuple[str, str]:
    """The canonical method label and what is not plain about it; a sparse activation alone is a method of its own.

    Args:
        source: the row that it starts from: an arm that trains another row's connections says whose.
    """
    method = _method(json.dumps(one.spec["method"], sort_keys=True))
    activation = one.spec["activation"]["name"]
    changed = twin is not None and twin.spec["activation"]["name"] != activation
    label, variant = method.label, method.variant
    if one.arm in ("shuffled-mask", "reinit-mask"):
        return one.arm, "of " + ", ".join(part for part in _labels(source, twin) if part) if source else ""
    if one.arm == "small-dense":
        label = one.arm
    elif changed and label == "dense":
        label = activation
    elif changed:
        variant = ",".join(part for part in (variant, activation) if part)
    held = {layer.get("topology", "free") for record in one.records for layer in (record.get("counts") or {}).get("layers", ())}
    projected = [
        text for topology, text in _PROJECTED.items() if topology in held and method.pattern.kind == "unstructured" and one.arm != "dense"
    ]
    variant = ",".join(part for part in (variant, *projected) if part)
    if (one.spec["start"] or {}).get("gives") == "weights" and method.pruner:
        variant = ",".join(part for part in (variant, "from twin") if part)
    return label, variant


@lru_cache(maxsize=256)
def _method(text: str) -> Method:
    """Of thousands of rows most share their method."""
    from sparsefleet.trial.spec import Method

    return Method.model_validate_json(text)


def _twin_differs(spec: dict[str, Any], twin: Group | None) -> dict[str, list[Any]]:
    """Settings of optimizer and training in which the twin is not the same: {path: [ours, the twin's]}."""
    if twin is None:
        return {}
    parts = ("optimizer", "train", "init", "validation")
    pairs = differences({p: spec.get(p) for p in parts}, {p: twin.spec.get(p) for p in parts})
    return {path: list(pair) for path, pair in pairs.items()}


def _tell_apart(table: list[dict[str, Any]], groups: list[Group]) -> None:
    """Adds ``setting``: the spec values that tell a row from the others of the same names."""
    alike: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        alike.setdefault(json.dumps([row[name] for name in _IDENTITY], sort_keys=True), []).append(i)
    for members in alike.values():
        flat = [dict(leaves(groups[i].spec)) for i in members]
        paths = sorted({path for spec in flat for path in spec if path.split(".")[0] not in _SHOWN_PATHS})
        varying = [p for p in paths if len({json.dumps(spec.get(p)) for spec in flat}) > 1]
        for i, spec in zip(members, flat, strict=True):
            table[i]["setting"] = {p: spec.get(p) for p in varying}


def _add_paths(table: list[dict[str, Any]], groups: list[Group], by: Sequence[str]) -> None:
    for name in by:
        if table and name in table[0]:
            continue
        found = [leaf(g.spec, name) for g in groups]
        if table and all(value is None for value in found):
            known = [*table[0], *dict(leaves(groups[0].spec))]
            raise UserError(f"--by {name}: no such column or key of the trials' specs", fix=did_you_mean(name, known))
        for row, value in zip(table, found, strict=True):
            row[name] = value


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Blocks of one data set and model; in each the dense twin first, then from dense to sparse."""
    block = (row["dataset"], row["model"], json.dumps([row["dataset_params"], row["model_params"]], sort_keys=True))
    kind = {"dense": 0, "sparse": 1}.get(row["arm"], 1)
    return (*block, kind, -row["density_asked"], row["layer"], row["arm"] != "sparse", row["method"], row["variant"], row["id"])


def _orderable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return 0, -float(value) if isinstance(value, float) else float(value), ""
    return 1, 0.0, "" if value is None else json.dumps(value, sort_keys=True)
