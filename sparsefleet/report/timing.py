"""Which measured figures belong to a row of the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.report.intervals import mean

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TimingRow
    from sparsefleet.report.groups import Group

MASKED = "masked_dense"
_NONE: dict[str, Any] = {
    "execution": None,
    "step_ms": None,
    "step_ms_p10": None,
    "step_ms_p90": None,
    "dense_step_ms": None,
    "vs_dense_width": None,
    "vs_dense_width_ci": None,
    "timing": None,
    "timing_trusted": None,
    "timing_note": "",
    "n_timed": 0,
    "timings": [],
}


class Timings:
    """Measured configurations by trial key."""

    def __init__(self, rows: Iterable[TimingRow]) -> None:
        self._by_key: dict[str, list[TimingRow]] = {}
        for row in rows:
            for key in row.keys:
                self._by_key.setdefault(key, []).append(row)

    def columns(self, one: Group, followers: Sequence[Group]) -> dict[str, Any]:
        """The timing columns of a row.

        The headline is the training step at the training's batch size where that was measured, else the first of its kind; of several (one
        per topology) the one with the median speed-up, trusted ones before others. ``timings`` holds them all. What is stored as a masked dense weight has a step time and never a speed-up. A dense row without a timing of its
        own shows the dense side of its followers' pairs.
        """
        found, reasons = self._of(one)
        execution = _execution(one, found)
        columns: dict[str, Any] = {**_NONE, "execution": execution, "timing_note": "; ".join(reasons)}
        if execution == MASKED or one.arm == "dense":
            found = [{**t, "speedup": None, "ci95": None} for t in found]
        columns["timings"] = [_brief(t) for t in found]
        batch_size = one.spec["train"]["batch_size"]
        if not found and one.arm == "dense":
            return {**columns, **self._dense_side(followers, batch_size)}
        alike = _alike(found, batch_size)
        if not alike:
            return columns
        head = _middle(alike)
        side = head["dense_s"] if one.arm == "dense" and head["execution"] == "dense" and not head["sparse_s"] else head["sparse_s"]
        return {
            **columns,
            **_ms(side),
            "dense_step_ms": _ms(head["dense_s"])["step_ms"],
            "vs_dense_width": head["speedup"],
            "vs_dense_width_ci": list(head["ci95"]) if head["ci95"] else None,
            "timing": _conditions(head),
            "timing_trusted": trusted(head),
            "timing_note": head.get("note", ""),
            "n_timed": len(alike),
        }

    def _of(self, one: Group) -> tuple[list[dict[str, Any]], list[str]]:
        timings: list[dict[str, Any]] = []
        reasons: list[str] = []
        seen: set[str] = set()
        for trial in one.trials:
            for row in self._by_key.get(trial.key, []):
                if row.config_key in seen:
                    continue
                seen.add(row.config_key)
                timings += row.timings
                if row.reason and row.reason not in reasons:
                    reasons.append(row.reason)
        return timings, reasons

    def _dense_side(self, followers: Sequence[Group], batch_size: int) -> dict[str, Any]:
        heads = [h for f in followers for h in _alike(self._of(f)[0], batch_size) if h["batch_size"] == batch_size and h["dense_s"]]
        heads = [h for h in heads if trusted(h)] or heads
        if not heads:
            return {}
        same = [h for h in heads if _baseline(h) == _baseline(heads[0])]
        sides = [_ms(h["dense_s"]) for h in same]
        merged = {name: mean([v for v in (s[name] for s in sides) if v is not None]) for name in sides[0]}
        return {
            **merged,
            "dense_step_ms": merged["step_ms"],
            "timing": {**_conditions(heads[0]), "execution": "dense"},
            "timing_trusted": trusted(heads[0]),
            "n_timed": len(same),
            "timing_note": f"mean of the dense side of {len(same)} paired timing{'s' if len(same) > 1 else ''}",
        }


def _execution(one: Group, found: Sequence[dict[str, Any]]) -> str | None:
    """How the prunable weights are stored at the end; one masked layer makes the row a masked one."""
    kinds = [layer["execution"] for r in one.records if r.get("counts") for layer in r["counts"]["layers"]]
    kinds += [t["execution"] for t in found]
    if MASKED in kinds or one.spec["layer"]["name"] == "masked":
        return MASKED
    return next((kind for kind in kinds if kind != "dense"), kinds[0] if kinds else None)


def trusted(timing: dict[str, Any]) -> bool:
    """True if the measurement passed its gates; see ``sparsefleet.measure.trust``."""
    return not str(timing.get("note", "")).startswith("not trusted")


def _alike(found: Sequence[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Those measurements that can be a row's headline."""
    order = sorted(found, key=lambda t: (t["op"] != "step", t["batch_size"] != batch_size, t["batch_size"]))
    return [t for t in order if (t["op"], t["batch_size"]) == (order[0]["op"], order[0]["batch_size"])]


def _middle(alike: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one with the median speed-up, of the trusted ones if there are any, then of those with an interval."""
    pool = [t for t in alike if t["ci95"] and trusted(t)] or [t for t in alike if t["ci95"]] or list(alike)
    return sorted(pool, key=lambda t: t["speedup"] or 0.0)[(len(pool) - 1) // 2]


def _baseline(t: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _conditions(t).items() if name != "execution"}


def _ms(side: dict[str, float]) -> dict[str, float | None]:
    def figure(name: str) -> float | None:
        return 1000.0 * side[name] if name in side else None

    return {"step_ms": figure("median"), "step_ms_p10": figure("p10"), "step_ms_p90": figure("p90")}


def _conditions(t: dict[str, Any]) -> dict[str, Any]:
    """What a speed-up may not be printed without."""
    return {name: t[name] for name in ("op", "batch_size", "dtype", "device", "threads", "baseline", "execution")}


def _brief(t: dict[str, Any]) -> dict[str, Any]:
    return {
        **_conditions(t),
        "dense_ms": _ms(t["dense_s"])["step_ms"],
        "sparse_ms": _ms(t["sparse_s"])["step_ms"],
        "speedup": t["speedup"],
        "ci95": list(t["ci95"]) if t["ci95"] else None,
        "aa_ratio": t["aa_ratio"],
        "rounds": t["rounds"],
        "kept": t["kept"],
        "trusted": trusted(t),
        "note": t.get("note", ""),
        "config_key": t["config_key"],
        "samples_ref": t["samples_ref"],
    }
