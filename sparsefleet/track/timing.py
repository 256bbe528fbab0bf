"""What a measured configuration says in MLflow's words: metrics and tags. Pure functions; imports no mlflow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsefleet.ledger.rows import TimingRow
from sparsefleet.track import names

if TYPE_CHECKING:
    from mlflow.entities import RunData

_UNTRUSTED = "NOT_TRUSTWORTHY"
_THEORY = {names.THEORETICAL: "flop_ratio", names.ROOFLINE: "roofline_speedup"}
_MEMORY = {names.PEAK: "peak_bytes", names.PEAK_DENSE: "dense_peak_bytes"}
_CONDITIONS = ("config_key", "level", "op", "batch_size", "dtype", "device", "threads", "execution", "baseline", "processes", "fingerprint")


def metrics_of(timing: Mapping[str, Any]) -> dict[str, float]:
    """Metric names and values; what the clock said only where it may be trusted, since MLflow orders runs by any metric."""
    theory, memory = timing["theory"], timing["memory"]
    found = {
        **{name: theory.get(key) for name, key in _THEORY.items()},
        **{name: memory.get(key) for name, key in _MEMORY.items()},
        names.CONTROL: timing["aa_ratio"],
        names.KEPT: timing["kept"],
        names.PREPARE: timing["prepare_s"],
        **(_clocked(timing) if timing["verdict"] != _UNTRUSTED else {}),
    }
    config = config_of(timing)
    return {name.replace("{config}", config): float(value) for name, value in found.items() if value is not None}


def tags_of_timing(timing: Mapping[str, Any]) -> dict[str, str]:
    """Verdicts, the reasons against it, and the conditions."""
    config = config_of(timing)
    return {
        names.VERDICT.format(config=config): timing["verdict"],
        names.RIVAL_VERDICT.format(config=config): timing["rival_verdict"],
        names.REASONS.format(config=config): "; ".join(timing["reasons"]),
        names.TIMED.format(config=config): json.dumps({name: timing[name] for name in _CONDITIONS}, ensure_ascii=False),
    }


def withdrawn(run: RunData, timing: TimingRow) -> tuple[dict[str, float], dict[str, str]]:
    """What a run says of this configuration and the ledger does not say any more: its metrics as NaN, which orders no runs, and tags that tell it.

    MLflow forgets no metric. A measurement that failed has none, and its tags say how it ended.
    """
    confirmed = {name for one in timing.timings for name in metrics_of(one)}
    configs = {config_of(one) for one in timing.timings} or set(_configs(run.tags, timing.config_key))
    shown = [name for name, value in run.metrics.items() if name not in confirmed and not math.isnan(value)]
    stale = [name for name in shown if any(name.startswith(f"timing/{config}/") for config in configs)]
    said: dict[str, str] = {}
    for config in configs if not timing.timings else ():
        said[names.VERDICT.format(config=config)] = said[names.RIVAL_VERDICT.format(config=config)] = "NONE"
        said[names.REASONS.format(config=config)] = f"{timing.state}: {timing.reason or ''}"
        said[names.TIMED.format(config=config)] = json.dumps({"config_key": timing.config_key, "state": timing.state})
    return dict.fromkeys(stale, math.nan), said


def _configs(tags: Mapping[str, str], config_key: str) -> Iterator[str]:
    """Under which names a run shows timings of this configuration."""
    before, _, _ = names.TIMED.partition("{")
    for name, text in tags.items():
        if name.startswith(before) and f'"config_key": {json.dumps(config_key)}' in text:
            yield name.removeprefix(before)


def config_of(timing: Mapping[str, Any]) -> str:
    """``step-b64-float32``: what tells a trial's timings apart."""
    return f"{timing['op']}-b{timing['batch_size']}-{word(timing['dtype'])}"


def word(text: str) -> str:
    """``text`` with what MLflow refuses in a metric's name replaced."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. ") else "_" for c in text)


def _clocked(timing: Mapping[str, Any]) -> dict[str, float | None]:
    theory = timing["theory"]
    found: dict[str, float | None] = {
        names.METHOD_SHARE: timing["method_share"],
        names.PAID_BACK: timing["breakeven_calls"],
        names.OF_LIMIT: theory.get("fraction_of_limit"),
    }
    for name, side in ((names.TIME_DENSE, "dense_s"), (names.TIME_SPARSE, "sparse_s"), (names.TIME_RIVAL, "rival_s")):
        found.update({name.replace("{statistic}", word(statistic)): value for statistic, value in timing[side].items()})
    if timing["speedup"] is not None:
        found[names.SPEEDUP], found[names.REALISED] = timing["speedup"], theory.get("realised_fraction")
        found[names.SPEEDUP_LOW], found[names.SPEEDUP_HIGH] = timing["ci95"] or (None, None)
    if timing["rival_speedup"] is not None and timing["rival_verdict"] != _UNTRUSTED:
        found[names.RIVAL_SPEEDUP] = timing["rival_speedup"]
        found[names.RIVAL_SPEEDUP_LOW], found[names.RIVAL_SPEEDUP_HIGH] = timing["rival_ci95"] or (None, None)
    return found
