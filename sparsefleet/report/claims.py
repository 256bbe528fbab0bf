"""One line on what the table's seeds can and cannot claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsefleet.report.accuracy import HELD, LOST, MIN_PAIRS, UNCLEAR
from sparsefleet.report.intervals import t_quantile

Row = Mapping[str, Any]


def claim(rows: Sequence[Row]) -> str:
    """The smallest difference to dense that the paired intervals could tell from none, in words."""
    compared = [row for row in rows if row["n_paired"]]
    if not compared:
        return "no row is paired with a dense twin, so nothing can be said about differences"
    n = min(row["n_paired"] for row in compared)
    if n == 1:
        return "1 seed can claim nothing about a difference in accuracy: there is no interval; it shows that everything runs"
    with_interval = [row for row in compared if row["delta_twin_ci"]]
    if not with_interval:
        return f"{n} seeds, but all paired differences of a row are equal: there is no interval, and nothing is claimed"
    halves = sorted((row["delta_twin_ci"][1] - row["delta_twin_ci"][0]) / 2 for row in with_interval)
    typical = halves[len(halves) // 2]
    width = t_quantile(n) / math.sqrt(n)
    n_intervals = len(with_interval)
    many = f"{n_intervals} such intervals" if n_intervals > 1 else "one such interval"
    missing = max(round(n_intervals * 0.05), 1)
    if n >= MIN_PAIRS:
        return f"{_verdicts(compared)}; a paired 95 % interval is here typically ±{typical:.3f}, and of {many} {missing} may well miss by chance alone"
    return (
        f"{n} seeds, and a claim needs {MIN_PAIRS}: a paired 95 % interval is ±{width:.1f} standard deviations wide, here typically ±{typical:.3f}; smaller differences, and the "
        f"order of rows whose intervals overlap, are not results; of {many} {missing} may well miss by chance alone"
    )


def _verdicts(compared: Sequence[Row]) -> str:
    """``accuracy against dense: held in 3 rows, lost in 1, unclear in 2``."""
    counts = [
        (word, sum(row["acc_verdict"] == verdict for row in compared))
        for word, verdict in (("held", HELD), ("lost", LOST), ("unclear", UNCLEAR))
    ]
    told = [f"{word} in {n} row{'s' if n > 1 else ''}" for word, n in counts if n]
    silent = len(compared) - sum(n for _, n in counts)
    if silent:
        told.append(f"no claim in {silent}")
    return f"accuracy against dense: {', '.join(told)}"
