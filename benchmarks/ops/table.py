"""A measured case for people, and as figures with their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.figures import QUICK, Figure
from benchmarks.ops import cases
from benchmarks.ops.cases import MAIN, Case, Target
from benchmarks.ops.measure import doubt_of, fastest_dense

_MIB = 2**20
_WORDS = {
    "ratio": "times faster than {peer}, forward + backward",
    "forward_ratio": "times faster than {peer}, forward",
    "row_major_ratio": "times faster than {peer}, forward + backward, transposes in and out",
    "peak_ratio": "times less peak memory than {peer}",
    "limit_forward": "of this machine's limit, forward",
    "limit_backward": "of this machine's limit, backward",
    "break_even": "break-even sparsity against {peer}",
}


def table(found: dict[str, Any]) -> str:
    """One line a side: times in ms, peak memory, ratio by forward + backward with its interval, and what speaks against it."""
    head = f"{'':20} {'fwd ms':>9} {'bwd ms':>9} {'f+b ms':>9} {'step ms':>9} {'peak MiB':>9}  ours is … times faster [95 %]"
    lines = [f"{found['case']}  {found['title']}, {found['device']}, {found['threads']} thread(s)"]
    for point in found.get("points", [found]):
        ours, shape = point["ours"], "{}→{}".format(*point["shape"])
        lines += [f"  {shape}, density {point['density']:.4g}, {point['nnz']:,} connections", f"  {head}", f"  {_line('ours', ours, '')}"]
        lines.append(f"  {_line('ours, transposing', ours['row_major'], '')}")
        shares = (f"{name} {row['percent']:.0f} % ({row['bound']}, {row['limit_ms']:.3g} ms)" for name, row in ours["limit"].items())
        lines.append(f"  {'ours of the limit':20} {', '.join(shares)}")
        for name, peer in point["peers"].items():
            text = f"{name:20} not run: {peer['not_run']}" if "not_run" in peer else None
            text = f"{name:20} WRONG: {peer['wrong']}" if "wrong" in peer else text
            lines.append(f"  {text or _line(name, peer, _ratio(peer))}")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], ratio: str) -> str:
    times = " ".join(f"{row[f'{short}_ms']:9.4g}" for short in ("fwd", "bwd", "fwd_bwd", "step"))
    peak = f"{row['peak_bytes'] / _MIB:9.1f}" if row.get("peak_bytes") is not None else f"{'':9}"
    return f"{name:20} {times} {peak}  {ratio}"


def _ratio(peer: dict[str, Any]) -> str:
    if peer["ratio_vs_ours"] is None:
        return f"none: {'; '.join(peer['reasons'])}"
    return f"{peer['ratio_vs_ours']:.3g}{_interval(peer['ci'])} {peer['verdict']}{_because(peer['reasons'])}"


def _interval(bounds: Any) -> str:
    return f" [{bounds[0]:.3g}, {bounds[1]:.3g}]" if bounds else ""


def _because(reasons: list[str]) -> str:
    return f" ({'; '.join(reasons)})" if reasons else ""


def figures(case: Case, found: dict[str, Any]) -> list[Figure]:
    """Every peer's ratio, the shares of the limit and the memory; with a target where the case has one for this kind of device."""
    targets = [target for target in case.targets if target.device == found["device"]]
    made = [_judged(case, target, found) for target in targets]
    with_target = {figure.what for figure in made}
    told = [
        figure
        for point in found.get("points", [found])
        for name, peer in point["peers"].items()
        for figure in (_told(case, name, peer, point, found["quick"]),)
        if figure.what not in with_target
    ]
    return made + told


@dataclass(frozen=True)
class _Value:
    """What was found for a target; ``doubt`` says why it proves nothing."""

    value: float | None
    note: str
    spread: tuple[float, float] | None = None
    doubt: str = ""


def _judged(case: Case, target: Target, found: dict[str, Any]) -> Figure:
    unit = "%" if target.measure.startswith(("limit", "break")) else "times"
    what = _WORDS[target.measure].format(peer=target.against) + f": {case.title}"
    got = _value(target, found)
    doubt = got.doubt or (QUICK if found["quick"] else "")
    at_least = target.measure != "break_even"
    return Figure(what, unit, got.value, got.spread, target.least, at_least=at_least, note=got.note, doubt=doubt)


def _value(target: Target, found: dict[str, Any]) -> _Value:
    if target.measure == "break_even":
        return _break_even(found["break_even"], target.least)
    if target.measure.startswith("limit"):
        row = found["ours"]["limit"][target.measure.removeprefix("limit_")]
        return _Value(row["percent"], f"{row['bound']}; the limit is {row['limit_ms']:.3g} ms", doubt=doubt_of(row))
    peer = found["peers"].get(target.against)
    if peer is None:
        return _Value(None, "not asked for")
    if "ops" not in peer:
        return _Value(None, peer.get("not_run") or peer["wrong"])
    if target.measure == "peak_ratio":
        own, other = found["ours"]["peak_bytes"], peer["peak_bytes"]
        return _Value(other / own, f"{other / _MIB:.1f} against {own / _MIB:.1f} MiB") if own and other else _Value(None, "not readable")
    op = "forward" if target.measure == "forward_ratio" else MAIN
    row = fastest_dense(found, op) if target.against == cases.DENSE else peer["ops"][op]
    row = row or peer["ops"][op]
    which = "row_major_" if target.measure == "row_major_ratio" else ""
    spread = row[f"{which}ci"]
    note = f"{row['ms']:.4g} ms against {row[f'ours_{which}ms']:.4g} ms; {row[f'{which}verdict']}"
    return _Value(row[f"{which}ratio"], note, tuple(spread) if spread else None, doubt_of(row, which))


def _break_even(found: dict[str, Any], most: float) -> _Value:
    """A lower bound can miss an upper limit and never keep it."""
    percent, doubt = found["percent"], "; ".join(found["doubts"])
    if found["bound"] == "at least" and percent <= most:
        doubt = doubt or "only a lower bound is known"
    return _Value(percent, found["note"], doubt=doubt)


def _told(case: Case, name: str, peer: dict[str, Any], point: dict[str, Any], quick: bool) -> Figure:
    density = f", density {point['density']:.4g}" if len(case.shapes) > 1 else ""
    what = _WORDS["ratio"].format(peer=name) + f": {case.title}{density}"
    if "ops" not in peer:
        return Figure(what, "times", note=peer.get("not_run") or peer["wrong"], broken="wrong" in peer)
    spread, doubt = tuple(peer["ci"]) if peer["ci"] else None, doubt_of(peer) or (QUICK if quick else "")
    return Figure(what, "times", peer["ratio_vs_ours"], spread, note=f"{peer['fwd_bwd_ms']:.4g} ms; {peer['verdict']}", doubt=doubt)
