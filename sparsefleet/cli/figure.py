"""One timing with everything that a speed-up may not be told without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsefleet.report.speed import times
from sparsefleet.report.speed_notes import PAGE, SCREEN, conditions
from sparsefleet.report.trust import NOTHING, UNTRUSTED

if TYPE_CHECKING:
    from sparsefleet.cli.timed import Timed

_MIB = 2**20


def circumstances(timing: Mapping[str, Any], found: Timed) -> dict[str, Any]:
    """The accuracy verdict of the trial's row, and what is missing for the figure to be a claim."""
    verdict = (found.row or {}).get("acc_verdict")
    missing = [
        *(["the absolute dense time"] if not timing["dense_s"] else []),
        *(["its interval"] if not timing["ci95"] else []),
        *(["an accuracy verdict"] if not verdict else []),
        *(["the theoretical speed-up"] if "flop_ratio" not in timing["theory"] else []),
    ]
    return {"accuracy_verdict": verdict, "headline_missing": missing}


def as_lines(timing: Mapping[str, Any], found: Timed) -> list[str]:
    """The figure, its conditions and what speaks against it, a line each."""
    about = circumstances(timing, found)
    lines = [
        ("trial", f"{found.spec_id}  {found.label}, stored as {timing['execution']}"),
        ("timed", conditions(timing)),
        ("dense", _side(timing["dense_s"])),
        ("sparse", _side(timing["sparse_s"])),
        ("small-dense", _side(timing["rival_s"])),
        ("vs dense", _ratio(timing["speedup"], timing["ci95"], timing["verdict"])),
        ("vs small-dense", _ratio(timing["rival_speedup"], timing["rival_ci95"], timing["rival_verdict"])),
        ("theory", _theory(timing["theory"])),
        ("accuracy", _accuracy(found.row)),
        ("A/A control", f"dense against dense reads {timing['aa_ratio']:.3f}; {timing['kept']} of {timing['rounds']} rounds kept"),
        ("memory", _memory(timing["memory"])),
        ("conversion", _conversion(timing)),
        ("machine", timing["fingerprint"]),
        ("remark", "; ".join(filter(None, [timing["note"], timing["rival_note"]]))),
    ]
    told = [f"{name:<14}  {text}" for name, text in lines if text]
    told += [f"{'not trusted':<14}  {reason}" for reason in timing["reasons"]]
    if timing["reasons"]:
        told.append(f"{PAGE} says what each reason means and what to do")
    if timing["level"] == "screen":
        told.append(SCREEN)
    if about["headline_missing"] and timing["speedup"] is not None:
        told.append(f"no claim can rest on this alone: {', '.join(about['headline_missing'])} is missing")
    return told


def _accuracy(row: Mapping[str, Any] | None) -> str:
    if not row or not row["acc_verdict"]:
        return "no verdict: that takes the seeds of a sweep"
    return f"{row['acc_verdict']}{f', {reason}' if (reason := row['acc_reason']) else ''}"


def _side(side: Mapping[str, float]) -> str:
    if not side:
        return ""
    p50, p10, p90 = (1000 * side[name] for name in ("median", "p10", "p90"))
    return f"{p50:.4g} ms p50 [{p10:.4g}, {p90:.4g}]"


def _ratio(value: float | None, bounds: tuple[float, float] | None, verdict: str) -> str:
    if value is None:
        return "" if verdict == NOTHING else verdict
    if verdict == UNTRUSTED or bounds is None:
        return f"({times(value)}) {verdict}"
    return f"{times(value)} [{times(bounds[0])[:-1]}, {times(bounds[1])[:-1]}] {verdict}"


def _theory(theory: Mapping[str, Any]) -> str:
    parts = []
    if "flop_ratio" in theory:
        parts.append(f"counted FLOPs {times(theory['flop_ratio'])}")
    if "roofline_speedup" in theory:
        parts.append(f"this machine's limits {times(theory['roofline_speedup'])}")
    if "fraction_of_limit" in theory:
        parts.append(f"{100 * theory['fraction_of_limit']:.2g} % of the limit reached")
    return ", ".join(parts)


def _memory(memory: Mapping[str, Any]) -> str:
    if "peak_bytes" not in memory:
        return ""
    dense = f" against {memory['dense_peak_bytes'] / _MIB:,.1f} MiB of dense" if "dense_peak_bytes" in memory else ""
    return f"peak {memory['peak_bytes'] / _MIB:,.1f} MiB{dense} ({memory['peak_kind']})"


def _conversion(timing: Mapping[str, Any]) -> str:
    if timing["prepare_s"] is None:
        return ""
    paid = "" if timing["breakeven_calls"] is None else f", paid back after {timing['breakeven_calls']:,.0f} calls"
    return f"{1000 * timing['prepare_s']:.3g} ms to the sparse storage{paid}"
