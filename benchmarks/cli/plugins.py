"""What a plugin author waits for, and how long the smallest plugins are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.cli.outsider import Failed, travel
from benchmarks.cli.times import timed
from benchmarks.figures import Figure, Run
from sparsefleet.plugin import FAMILIES
from sparsefleet.scaffold import TARGET_LINES, render

COLD_S, CACHED_S = 4.0, 0.5


def listing(run: Run) -> list[Figure]:
    """Seconds of ``plugins list`` without and with its cache; the best of the repetitions counts."""
    cold, cached = [], []
    for _ in range(run.pick(5, 2)):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "SPARSEFLEET_HOME": folder, "SPARSEFLEET_CACHE": folder}
            cold.append(timed(("plugins", "list"), environment)["wall_s"])
            cached.append(timed(("plugins", "list"), environment)["wall_s"])
    run.keep({"cold_s": cold, "cached_s": cached})
    return [
        Figure("plugins list, nothing cached", "s", min(cold), (min(cold), max(cold)), target=COLD_S, at_least=False),
        Figure("plugins list, from its cache", "s", min(cached), (min(cached), max(cached)), target=CACHED_S, at_least=False),
    ]


def lines(run: Run) -> list[Figure]:
    """Non-blank lines of every family's template."""
    found = {family: render(family, "my-own")["sf_my_own.py"] for family in FAMILIES}
    return [
        Figure(
            f"smallest {family}: non-blank lines",
            "lines",
            sum(1 for line in text.split("\n") if line.strip()),
            target=TARGET_LINES[family],
            at_least=False,
        )
        for family, text in found.items()
    ]


def journeys(run: Run) -> list[Figure]:
    """Seconds from ``plugins new`` to a green check and to the first row, for every family."""
    figures = []
    for family in FAMILIES[: run.pick(len(FAMILIES), 1)]:
        run.say(family)
        with tempfile.TemporaryDirectory() as folder:
            try:
                journey = travel(family, f"own-{family}", Path(folder))
            except Failed as failed:
                figures.append(Figure(f"{family}: from plugins new to the first row", "s", note=str(failed), broken=True))
                continue
        figures.append(Figure(f"{family}: from plugins new to a green check", "s", journey.check_s))
        figures.append(Figure(f"{family}: from plugins new to the first row", "s", journey.row_s))
    return figures
