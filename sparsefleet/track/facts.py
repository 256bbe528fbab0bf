"""What a trial's row and record say in MLflow's words: parameters, tags, metrics. Pure functions; imports no mlflow."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sparsefleet.ledger.rows import SweepRow, TrialRow
from sparsefleet.track import names
from sparsefleet.track.timing import metrics_of, word

_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_LONGEST_METRIC = 200
_LONGEST_NAME = 100
_CUT = " … (cut)"
_STATUS = {"SUCCEEDED": "FINISHED", "DIVERGED": "FINISHED", "CANCELLED": "KILLED"}
_SWEEP_STATUS = {"DONE": "FINISHED", "FAILED": "FAILED", "RUNNING": "RUNNING", "MEASURING": "RUNNING"}


class Point(NamedTuple):
    """One value of one metric. ``timestamp`` is in milliseconds and fixed by the record: repeating it adds nothing."""

    name: str
    value: float
    timestamp: int
    step: int


def params_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """The spec, flat and dotted; a plugin or a tagged variant is its name, its own values follow under it."""
    return {path: cut(text, _LONGEST_PARAM) for path, text in _leaves("", spec) if path != "schema"}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping):
        if value is not None:
            yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return
    inner = dict(value)
    label = None
    if set(inner) == {"name", "params"}:
        label, inner = inner["name"], inner["params"]
    elif "kind" in inner:
        label = inner.pop("kind")
    if label is not None:
        yield path, str(label)
    for name, below in inner.items():
        yield from _leaves(f"{path}.{name}" if path else str(name), below)


def label_of(spec: Mapping[str, Any]) -> str:
    """The method's label."""
    from sparsefleet.trial.spec import Method

    return Method.model_validate(spec["method"]).label


def run_name(row: TrialRow) -> str:
    """``method-layer-dDENSITY-sSEED-spec_id``, in ``[A-Za-z0-9._-]``."""
    density = row.spec.get("narrow_to_density") or row.spec["density"]
    parts = [
        row.arm if row.arm not in ("", "sparse") else label_of(row.spec),
        row.spec["layer"]["name"],
        f"d{density:g}",
        f"s{row.spec['seed']}",
    ]
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "." for c in "-".join(parts)).lstrip(".")
    return f"{text[: _LONGEST_NAME - len(row.spec_id) - 1]}-{row.spec_id}"


def tags_of(row: TrialRow, spec_ids: Mapping[str, str], owner: SweepRow | None = None) -> dict[str, str]:
    """The tags of a trial's run.

    Args:
        spec_ids: by trial key, of the sweep's trials.
        owner: the sweep that ran it.
    """
    record = row.record or {}
    tags = {
        names.STATE: row.state,
        **_history(row, owner),
        names.ARM: row.arm,
        names.METHOD: label_of(row.spec),
        names.TWIN: spec_ids.get(row.twin_key or ""),
        names.RIVAL: spec_ids.get(row.rival_key or ""),
        names.SELECTION: ", ".join(
            f"{part['id']} {part['candidate'] + 1}/{part['n']}" for part in row.request.get("tuning", {}).get("parts", [])
        ),
        names.REASON: row.reason,
        names.DEVICE: record.get("device", {}).get("name"),
    }
    for used in record.get("plugins", []):
        tags[names.PLUGIN.format(family=used["family"])] = f"{used['name']} ({used['distribution']} {used['version']})"
    return {name: cut(str(value), _LONGEST_TAG) for name, value in tags.items() if value}


def _history(row: TrialRow, owner: SweepRow | None) -> dict[str, str | None]:
    """Where and how the trial ran, and how long it waited."""
    told: dict[str, str | None] = {names.NODE: row.node}
    if row.attempts:
        last = row.attempts[-1]
        told[names.ATTEMPTS] = "; ".join(f"{a['n']} {a['end']}" + (f" on {a['node']}" if a["node"] else "") for a in row.attempts)
        reason = str(last["reason"] or "").strip().splitlines()
        told[names.EXIT] = f"{last['end']}: {reason[0]}" if reason else last["end"]
        told[names.NODE] = last["node"] or row.node
    if owner is not None:
        told[names.BUNDLE] = (owner.settings.get("bundle") or {}).get("sha256")
        if row.attempts:
            told[names.WAIT] = f"{max(0, milliseconds(row.attempts[0]['started']) - milliseconds(owner.created)) / 1000:.1f}"
    return told


def status_of(state: str) -> str:
    """MLflow's status of a trial that ended in ``state``."""
    return _STATUS.get(state, "FAILED")


def sweep_status(state: str) -> str:
    """MLflow's status of a sweep in ``state``."""
    return _SWEEP_STATUS.get(state, "KILLED")


def milliseconds(when: str | None) -> int:
    """Of an ISO time, since 1970; 0 for none."""
    return int(datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp() * 1000) if when else 0


def started_of(row: TrialRow) -> int:
    """When the run began, in milliseconds; a trial that never ran began when it ended."""
    return milliseconds((row.record or {}).get("started") or row.started or row.ended)


def ended_of(row: TrialRow) -> int:
    """When the run ended, in milliseconds."""
    return max(started_of(row), milliseconds((row.record or {}).get("ended") or row.ended))


def metric_name(name: str) -> str:
    """``name`` as MLflow takes it for a metric; plugins name curves and modules as they like. Two names that differ stay different."""
    parts = [re.sub(r"[^A-Za-z0-9_. :-]", "_", part) for part in name.split("/")]
    safe = "/".join(part for part in parts if part.strip(". "))[:_LONGEST_METRIC]
    return safe if safe and safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def points_of(row: TrialRow) -> list[Point]:
    """Curves and final metrics of the trial's record."""
    record = row.record
    if record is None:
        return []
    begin, end = started_of(row), ended_of(row)
    accuracy = record.get("accuracy") or {}
    steps = max([accuracy.get("steps", 0), 1, *(curve["steps"][-1] for curve in record["curves"].values() if curve["steps"])])
    points = [
        Point(names.CURVE.format(name=metric_name(name)), value, begin + (end - begin) * step // steps, step)
        for name, curve in record["curves"].items()
        for step, value in zip(curve["steps"], curve["values"], strict=True)
    ]
    last = accuracy.get("steps", 0)
    points += [Point(name, float(value), end, last) for name, value in _final(record, accuracy) if value is not None]
    for timing in record.get("timings", []):
        points += [Point(name, value, end, 0) for name, value in metrics_of(timing).items()]
    return points


def _final(record: Mapping[str, Any], accuracy: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    if accuracy:
        metric = "top1_fraction" if accuracy["metric"] == "top1" else "mse"
        yield (names.ACCURACY if accuracy["metric"] == "top1" else names.MSE), accuracy["test"]
        if accuracy["metric"] == "top1":
            yield names.TEST_LOSS, accuracy["test_loss"]
        yield names.VAL_BEST.format(metric=metric), accuracy["best_on_val"]
        yield names.VAL_LAST.format(metric=metric), accuracy["last_on_val"]
        yield names.EPOCHS, accuracy["epochs"]
        yield names.STEPS, accuracy["steps"]
    counts = record.get("counts")
    if counts:
        yield names.DENSITY, counts["density_realised"]
        yield names.DENSITY_MODEL, counts["density_model"]
        yield names.PARAMS_LIVE, counts["params"]
        yield names.NNZ, counts["nnz_weights"]
        yield names.RESIDENT, counts["resident_bytes"]
        yield names.STORED, counts.get("stored_bytes")
        yield names.COMPRESSION, counts.get("compression")
        for role, size in counts["resident_by_role"].items():
            yield names.RESIDENT_ROLE.format(role=word(role)), size
        for layer in counts["layers"]:
            sites = 1
            for side in layer["shape"]:
                sites *= side
            yield names.LAYER_NNZ.format(layer=word(layer["name"])), layer["nnz"]
            yield names.LAYER_DENSITY.format(layer=word(layer["name"])), layer["nnz"] / sites
    yield names.WALL, record["wall_s"]
    for phase, seconds in record.get("phases_s", {}).items():
        yield names.PHASE.format(phase=word(phase)), seconds


def cut(text: str, longest: int) -> str:
    """``text``, cut visibly where MLflow would cut it without a word."""
    return text if len(text) <= longest else text[: longest - len(_CUT)] + _CUT


def cut_table(markdown: str, longest: int) -> str:
    """A Markdown text of at most ``longest`` characters, cut between lines, with a last line that says so."""
    if len(markdown) <= longest:
        return markdown
    said = f"\n\n… cut: the whole table is the artifact `{names.TABLE_MD}`.\n"
    lines, size = [], len(said)
    for line in markdown.splitlines(keepends=True):
        size += len(line)
        if size > longest:
            break
        lines.append(line)
    return "".join(lines).rstrip("\n") + said
