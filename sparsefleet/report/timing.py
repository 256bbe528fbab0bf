"""Which measured figures belong to a row of the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.report.intervals import mean
from sparsefleet.report.machines import Machines
from sparsefleet.report.trust import NOTHING, UNTRUSTED, rival_trusted, trusted

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TimingRow
    from sparsefleet.report.groups import Group

MASKED = "masked_dense"
_THEORY = {
    "theoretical_speedup": "flop_ratio",
    "bytes_ratio": "bytes_ratio",
    "roofline_speedup": "roofline_speedup",
    "realised_fraction": "realised_fraction",
    "fraction_of_limit": "fraction_of_limit",
    "bound": "bound",
}
_MEMORY = ("peak_bytes", "dense_peak_bytes", "peak_kind", "prepare_peak_bytes")
_COST = ("prepare_s", "breakeven_calls", "method_share")
_NONE: dict[str, Any] = {
    "execution": None,
    "step_ms": None,
    "step_ms_p10": None,
    "step_ms_p90": None,
    "dense_step_ms": None,
    "vs_dense_width": None,
    "vs_dense_width_ci": None,
    "vs_dense_width_verdict": NOTHING,
    "vs_small_dense": None,
    "vs_small_dense_ci": None,
    "vs_small_dense_verdict": NOTHING,
    **dict.fromkeys([*_THEORY, *_MEMORY, *_COST]),
    "timing": None,
    "timing_level": None,
    "timing_trusted": None,
    "timing_reasons": [],
    "timing_note": "",
    "fingerprint": None,
    "other_machines": {},
    "n_timed": 0,
    "timings": [],
}
_MASKED_HAS_NONE: dict[str, Any] = {
    "speedup": None,
    "ci95": None,
    "rival_speedup": None,
    "rival_ci95": None,
    "rival_verdict": NOTHING,
    "rival_reasons": [],
}


class Timings:
    """Measured configurations by trial key.

    Args:
        rows: what was measured.
        machines: which of several machines' timings are shown; by default those of the newest timing's machine.
    """

    def __init__(self, rows: Iterable[TimingRow], machines: Machines | None = None) -> None:
        rows = list(rows)
        self.machines = machines or Machines(rows)
        self._by_key: dict[str, list[TimingRow]] = {}
        for row in rows:
            for key in row.keys:
                self._by_key.setdefault(key, []).append(row)

    def columns(self, one: Group, followers: Sequence[Group]) -> dict[str, Any]:
        """The timing columns of a row.

        The headline is the training step at the training's batch size where that was measured, else the first of its kind; of several (one
        per topology) the one with the median speed-up, trusted ones only if there are any. ``timings`` holds them all. What is stored as a
        masked dense weight has a step time and never a speed-up. A dense row without a timing of its own shows the dense side of its
        followers' trusted pairs, a small-dense one the rival's side of the one with the median speed-up.
        """
        everywhere, reasons = self._of(one)
        found = [t for t in everywhere if self.machines.shows(t["fingerprint"])]
        others = sorted({t["fingerprint"] for t in everywhere} - {self.machines.newest})
        columns: dict[str, Any] = {
            **_NONE,
            "execution": _execution(one, everywhere),
            "timing_note": "; ".join(reasons),
            "other_machines": {machine: self.machines.differing(machine) for machine in others},
        }
        if columns["execution"] == MASKED or one.arm == "dense":
            found = [_alone(t) for t in found]
        columns["timings"] = [_brief(t) for t in found]
        batch_size = one.spec["train"]["batch_size"]
        if not found and one.arm == "dense":
            return {**columns, **self._dense_side(followers, batch_size)}
        if not found and one.arm == "small-dense":
            return {**columns, **self._rival_side(followers, batch_size)}
        cells = alike(found, batch_size, self.machines.newest)
        if not cells:
            return columns
        head = middle(cells)
        side = head["dense_s"] if one.arm == "dense" and head["execution"] == "dense" and not head["sparse_s"] else head["sparse_s"]
        return {**columns, **_ms(side), **_headline(head), "n_timed": len(cells)}

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
                told = f"{row.state}: {row.reason}" if row.reason else ""
                if told and told not in reasons:
                    reasons.append(told)
        return timings, reasons

    def _dense_side(self, followers: Sequence[Group], batch_size: int) -> dict[str, Any]:
        """The dense side of the trusted pairs on the table's machine, the mean of those that were taken alike."""
        paired = [t for f in followers for t in self._of(f)[0] if t["dense_s"] and trusted(t) and t["fingerprint"] == self.machines.newest]
        heads = [t for t in alike(paired, batch_size, self.machines.newest) if t["batch_size"] == batch_size]
        if not heads:
            return {}
        same = [h for h in heads if _dense_conditions(h) == _dense_conditions(heads[0])]
        sides = [_ms(h["dense_s"]) for h in same]
        merged = {name: mean([v for v in (s[name] for s in sides) if v is not None]) for name in sides[0]}
        peaks = [h["memory"]["dense_peak_bytes"] for h in same if "dense_peak_bytes" in h["memory"]]
        return {
            **merged,
            "dense_step_ms": merged["step_ms"],
            "peak_bytes": round(mean(peaks) or 0.0) if peaks else None,
            "peak_kind": next((h["memory"]["peak_kind"] for h in same if "peak_kind" in h["memory"]), None),
            "timing": {**_conditions(heads[0]), "execution": "dense"},
            "timing_level": heads[0]["level"],
            "timing_trusted": True,
            "fingerprint": heads[0]["fingerprint"],
            "n_timed": len(same),
            "timing_note": f"mean of the dense side of {len(same)} paired timing{'s' if len(same) > 1 else ''}",
        }

    def _rival_side(self, followers: Sequence[Group], batch_size: int) -> dict[str, Any]:
        """What was timed of a small-dense net beside the sparse nets whose rival it is."""
        paired = [
            t for f in followers for t in self._of(f)[0] if t["rival_s"] and t["dense_s"] and t["fingerprint"] == self.machines.newest
        ]
        beside = [
            {
                **t,
                "sparse_s": t["rival_s"],
                "speedup": t["rival_vs_dense"],
                "ci95": t["rival_vs_dense_ci95"],
                "verdict": t["rival_vs_dense_verdict"],
                "reasons": t["reasons"] or t["rival_reasons"] if t["rival_vs_dense_verdict"] == UNTRUSTED else [],
                "execution": "dense",
                "rival_note": "",
                "note": "timed as the rival of the sparse nets",
                "prepare_s": None,
                "breakeven_calls": None,
                "method_share": 0.0,
                **{name: value for name, value in _MASKED_HAS_NONE.items() if name.startswith("rival")},
                "theory": _rival_theory(t),
                "memory": {},
            }
            for t in paired
        ]
        cells = [t for t in alike(beside, batch_size, self.machines.newest) if t["batch_size"] == batch_size]
        if not cells:
            return {}
        head = middle(cells)
        return {**_ms(head["sparse_s"]), **_headline(head), "n_timed": len(cells)}


def _rival_theory(t: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted of the small-dense net, where its limits are known."""
    theory = t["theory"]
    if "flops_rival" not in theory:
        return {}
    ratio = theory["flops_dense"] / theory["flops_rival"]
    return {"flop_ratio": ratio, "fraction_of_limit": theory["rival_limit_s"] / t["rival_s"]["median"]}


def alike(found: Sequence[Mapping[str, Any]], batch_size: int, machine: str | None) -> list[Mapping[str, Any]]:
    """Those measurements that can be a row's headline: of one op, one batch size and one machine."""

    def place(t: Mapping[str, Any]) -> tuple[Any, ...]:
        here = t["fingerprint"] != machine
        return (
            t["op"] != "step",
            t["batch_size"] != batch_size,
            t["batch_size"],
            t["op"],
            here,
            t["fingerprint"],
            t["dtype"],
            t["device"],
            t["threads"],
        )

    order = sorted(found, key=place)
    return [t for t in order if place(t) == place(order[0])]


def middle(cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one with the median speed-up; of the trusted ones if there are any, then of those with an interval."""
    pool = (
        [t for t in cells if t["ci95"] and trusted(t)] or [t for t in cells if t["ci95"]] or [t for t in cells if trusted(t)] or list(cells)
    )
    return sorted(pool, key=lambda t: t["speedup"] or 0.0)[(len(pool) - 1) // 2]


def _headline(head: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dense_step_ms": _ms(head["dense_s"])["step_ms"],
        "vs_dense_width": head["speedup"],
        "vs_dense_width_ci": list(head["ci95"]) if head["ci95"] else None,
        "vs_dense_width_verdict": head["verdict"],
        "vs_small_dense": head["rival_speedup"],
        "vs_small_dense_ci": list(head["rival_ci95"]) if head["rival_ci95"] else None,
        "vs_small_dense_verdict": head["rival_verdict"],
        **{ours: head["theory"].get(theirs) for ours, theirs in _THEORY.items()},
        **{name: head["memory"].get(name) for name in _MEMORY},
        **{name: head[name] for name in _COST},
        "timing": _conditions(head),
        "timing_level": head["level"],
        "timing_trusted": trusted(head),
        "timing_reasons": list(head["reasons"]),
        "timing_note": "; ".join(filter(None, [head["note"], head["rival_note"]])),
        "fingerprint": head["fingerprint"],
    }


def _alone(t: Mapping[str, Any]) -> dict[str, Any]:
    verdict = t["verdict"] if not trusted(t) else NOTHING
    return {**t, **_MASKED_HAS_NONE, "verdict": verdict}


def _execution(one: Group, found: Sequence[Mapping[str, Any]]) -> str | None:
    """How the prunable weights are stored at the end; one masked layer makes the row a masked one."""
    kinds = [layer["execution"] for r in one.records if r.get("counts") for layer in r["counts"]["layers"]]
    kinds += [t["execution"] for t in found]
    if MASKED in kinds or one.spec["layer"]["name"] == "masked":
        return MASKED
    return next((kind for kind in kinds if kind != "dense"), kinds[0] if kinds else None)


def _dense_conditions(t: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _conditions(t).items() if name != "execution"} | {"level": t["level"]}


def _ms(side: Mapping[str, float]) -> dict[str, float | None]:
    def figure(name: str) -> float | None:
        return 1000.0 * side[name] if name in side else None

    return {"step_ms": figure("median"), "step_ms_p10": figure("p10"), "step_ms_p90": figure("p90")}


def _conditions(t: Mapping[str, Any]) -> dict[str, Any]:
    """What a speed-up may not be printed without."""
    return {name: t[name] for name in ("op", "batch_size", "dtype", "device", "threads", "baseline", "execution")}


def _brief(t: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement as the JSON rows list it: everything but the raw statistics in seconds."""
    sparse = _ms(t["sparse_s"])
    return {
        **_conditions(t),
        "level": t["level"],
        "dense_ms": _ms(t["dense_s"])["step_ms"],
        "sparse_ms": sparse["step_ms"],
        "sparse_ms_p10": sparse["step_ms_p10"],
        "sparse_ms_p90": sparse["step_ms_p90"],
        "small_dense_ms": _ms(t["rival_s"])["step_ms"],
        "speedup": t["speedup"],
        "ci95": list(t["ci95"]) if t["ci95"] else None,
        "trusted": trusted(t),
        "rival_trusted": rival_trusted(t),
        **{name: t[name] for name in _KEPT},
    }


_KEPT = (
    "verdict",
    "reasons",
    "rival_speedup",
    "rival_ci95",
    "rival_verdict",
    "rival_reasons",
    "rival_params",
    "rival_note",
    "baselines_tried",
    "aa_ratio",
    "drift",
    "rounds",
    "kept",
    "dropped",
    "processes",
    "between",
    "warmup_s",
    "prepare_s",
    "breakeven_calls",
    "method_share",
    "theory",
    "memory",
    "note",
    "attempt",
    "config_key",
    "samples_ref",
    "fingerprint",
)
