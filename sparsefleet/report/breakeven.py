"""Where a sparse layer starts to beat dense: the density at which the measured speed-up crosses 1."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sparsefleet.report.labels import labels

Row = Mapping[str, Any]


@dataclass(frozen=True)
class BreakEven:
    """The answer for one configuration: everything equal but the density.

    ``density`` is None where no two neighbouring densities lie on both sides; ``reason`` then says what was seen instead.
    """

    model: str
    layer: str
    method: str
    conditions: str
    machine: str
    density: float | None
    between: tuple[float, float] | None
    reason: str


def break_evens(rows: Sequence[Row]) -> list[BreakEven]:
    """One answer for each configuration that was timed; only measured speed-ups with an interval enter that may be trusted.

    Timings of different machines, levels or conditions are never joined.
    """
    points: dict[tuple[str, ...], dict[float, list[float]]] = {}
    models, layers = labels("model", rows), labels("layer", rows)
    for row, model, layer in zip(rows, models, layers, strict=True):
        if row["vs_dense_width"] is None or row["vs_dense_width_ci"] is None or row["density_realised"] is None:
            continue
        if not row["timing_trusted"]:
            continue
        if row["density_realised"] >= 1:  # dense weights: there is no density at which they would break even
            continue
        timing = row["timing"]
        where = f"{timing['op']}, batch {timing['batch_size']}, {timing['dtype']}, {timing['device']}, {timing['threads']}"
        method = ",".join(part for part in (row["method"], row["variant"], json.dumps(row["setting"])) if part)
        apart = json.dumps([row["dataset"], row["dataset_params"], row["arm"], row["timing_level"]])
        key = (apart, model, layer, method, where, row["fingerprint"])
        points.setdefault(key, {}).setdefault(row["density_realised"], []).append(row["vs_dense_width"])
    return [_answer(key, {d: median(s) for d, s in found.items()}) for key, found in points.items()]


def crossing(points: Mapping[float, float]) -> tuple[float | None, tuple[float, float] | None, str]:
    """The density at which the speed-up is 1, linear in log(density) and log(speed-up) between two measured densities.

    Returns:
        (density, the two densities around it, "") or (None, None, what was seen).
    """
    ordered = sorted(points.items())
    logs = [(math.log(d), math.log(s)) for d, s in ordered]
    crossings = [i for i in range(len(logs) - 1) if (logs[i][1] > 0) != (logs[i + 1][1] > 0)]
    if len(crossings) > 1:
        return None, None, "the measured speed-ups cross 1 more than once"
    if not crossings:
        faster = logs[0][1] > 0
        best = max(points.values()) if not faster else min(points.values())
        span = f"density {ordered[0][0]:.3g}" if len(ordered) == 1 else f"densities {ordered[0][0]:.3g} to {ordered[-1][0]:.3g}"
        return None, None, f"{'faster' if faster else 'slower'} at {span} ({'at least' if faster else 'at most'} {best:.2f}×)"
    i = crossings[0]
    (x0, y0), (x1, y1) = logs[i], logs[i + 1]
    if y0 <= 0:
        return None, None, f"slower at density {ordered[i][0]:.3g} and faster at {ordered[i + 1][0]:.3g}, which no break-even explains"
    return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1)), (ordered[i][0], ordered[i + 1][0]), ""


def sentences(rows: Sequence[Row]) -> list[str]:
    """One line per model and layer."""
    groups: dict[tuple[str, str, str, str], list[BreakEven]] = {}
    for found in break_evens(rows):
        groups.setdefault((found.model, found.layer, found.conditions, found.machine), []).append(found)
    if not groups:
        doubtful = any(row["timing_trusted"] is False and row["vs_dense_width"] is not None for row in rows)
        return [f"break-even: not bracketed; no speed-up was measured with an interval{' that may be trusted' if doubtful else ''}"]
    lines = []
    for (model, layer, _, _), members in groups.items():
        known = [m for m in members if m.density is not None and m.between is not None]
        what = f"break-even of {layer} on {model}"
        if known:
            densities = sorted(m.density for m in known if m.density is not None)
            spread = f", {densities[0]:.3g} to {densities[-1]:.3g} over {len(known)} configurations" if len(known) > 1 else ""
            low = min(m.between[0] for m in known if m.between)
            high = max(m.between[1] for m in known if m.between)
            lines.append(
                f"{what}: faster than dense below density {median(densities):.3g}{spread} (interpolated between {low:.3g} and {high:.3g})"
            )
        else:
            reasons = list(dict.fromkeys(m.reason for m in members))
            others = f"; {len(reasons) - 1} more configurations alike" if len(reasons) > 1 else ""
            lines.append(f"{what}: not bracketed; {reasons[0]}{others}")
    return lines


def _answer(key: tuple[str, ...], points: Mapping[float, float]) -> BreakEven:
    _, model, layer, method, where, machine = key
    density, between, reason = crossing(points)
    return BreakEven(model, layer, method, where, machine, density, between, reason)
