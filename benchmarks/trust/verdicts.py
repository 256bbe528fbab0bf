"""MT-01 to MT-04: what the estimator and its gates say of comparisons with a known answer, quiet and beside neighbours.

"Trusted" is any verdict but NOT_TRUSTWORTHY, by the gates of screen level. How quiet "quiet" was stands in the note.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import Figure, Run
from benchmarks.trust.neighbours import Foreign
from benchmarks.trust.planted import AA, PLANTED, Cell, cells, raw, tally
from sparsefleet.measure.cpus import cpus_allowed


def no_difference(run: Run) -> list[Figure]:
    """MT-01: dense against identical dense."""
    found, kept = [], {}
    for load, threads, n in [
        ("bursts", 1, run.pick(100, 4)),
        ("quiet", 1, run.pick(50, 4)),
        ("bursts", 2, run.pick(8, 1)),
        ("quiet", 2, run.pick(12, 2)),
    ]:
        if threads > len(cpus_allowed()):
            found.append(Figure(f"A/A, {load}, {threads} threads: cells trusted", "%", note="this process has one CPU only"))
            continue
        done, foreign = cells(run, n, load, threads=threads)
        kept[f"{load}, {threads}"] = raw(done)
        wanted = 90.0 if load == "quiet" else 50.0 if len(cpus_allowed()) > threads else None
        about, note = f"A/A, {load}, {threads} thread{'s' * (threads > 1)}", run.note(f"{tally(done)}; {foreign}")
        false = sum(one.verdict in ("FASTER", "SLOWER") for one in done)
        trusted = [one for one in done if one.trusted]
        within = share([one.error <= 0.015 for one in trusted])
        found += [
            Figure(f"{about}: FASTER or SLOWER", "cells", false, target=0, at_least=False, note=note),
            Figure(f"{about}: trusted", "%", share([one.trusted for one in done]), target=wanted, note=foreign_note(run, foreign)),
            Figure(f"{about}: trusted within 1.5 %", "%", within, target=95.0, note=worst(run, trusted)),
        ]
    run.keep(kept)
    return found


def planted(run: Run) -> list[Figure]:
    """MT-02: planted 1.10x, 0.90x and 2.0x."""
    found, kept = [], {}
    for load, threads, n in [
        ("quiet", 1, run.pick(40, 3)),
        ("bursts", 1, run.pick(20, 2)),
        ("quiet", 2, run.pick(8, 1)),
        ("bursts", 2, run.pick(4, 1)),
    ]:
        if threads > len(cpus_allowed()):
            found.append(Figure(f"planted, {load}, {threads} threads", "%", note="this process has one CPU only"))
            continue
        done, foreign = cells(run, n, load, kinds=list(PLANTED.values()), threads=threads)
        kept[f"{load}, {threads}"] = raw(done)
        about = f"planted, {load}, {threads} thread{'s' * (threads > 1)}"
        note = run.note(f"{tally(done)}; {foreign}")
        trusted = [one for one in done if one.trusted]
        worst_error = 100 * max((one.error for one in trusted), default=float("nan"))
        verdicts = 90.0 if load == "quiet" else None
        found += [
            Figure(f"{about}: wrong verdicts", "cells", sum(one.is_false for one in done), target=0, at_least=False, note=note),
            Figure(f"{about}: largest trusted error", "%", worst_error, target=2.0, at_least=False, note=worst(run, trusted))
            if trusted
            else Figure(f"{about}: largest trusted error", "%", note=run.note("no cell was trusted")),
            Figure(f"{about}: right verdicts", "%", share([one.found for one in done]), target=verdicts, note=foreign_note(run, foreign)),
        ]
    run.keep(kept)
    return found


def coverage(run: Run) -> list[Figure]:
    """MT-03: how often the 95 % interval of a trusted cell holds the planted ratio; all sides multiply by one matrix, see ``planted.cell``."""
    done, foreign = cells(run, run.pick(50, 3), "quiet", kinds=[AA, *PLANTED.values()], shared=True)
    run.keep(raw(done))
    trusted = [one for one in done if one.trusted]
    widths = sorted(one.estimate.half_width or 0.0 for one in trusted)
    width = f"half-width {100 * widths[len(widths) // 2]:.2f} % in the middle; " if widths else ""
    note = run.note(f"{len(trusted)} of {len(done)} cells; {width}{foreign}")
    with_interval = [one.covered for one in done if one.estimate.ci95]
    return [
        Figure(
            "intervals of trusted cells that hold the truth", "%", share([c.covered for c in trusted]), target=90.0, most=99.0, note=note
        ),
        Figure("intervals of all cells that hold the truth", "%", share(with_interval), note=run.note(f"{len(with_interval)} cells")),
    ]


def hogs(run: Run) -> list[Figure]:
    """MT-04: two CPU hogs all the while."""
    done, foreign = cells(run, run.pick(10, 2), "hogs", kinds=[AA, *PLANTED.values()])
    run.keep(raw(done))
    trusted = [one for one in done if one.trusted]
    starved = [one for one in done if one.estimate.kept < 0.5 * one.estimate.rounds]
    note = run.note(f"{tally(done)}; {foreign}")
    wrong, unseen = sum(one.error > 0.03 for one in trusted), sum(one.trusted for one in starved)
    return [
        Figure("beside 2 hogs: trusted and off by more than 3 %", "cells", wrong, target=0, at_least=False, note=note),
        Figure("beside 2 hogs: kept below half, and trusted", "cells", unseen, target=0, at_least=False, note=f"of {len(starved)}"),
        Figure("beside 2 hogs: wrong verdicts", "cells", sum(one.is_false for one in done), target=0, at_least=False),
        Figure("beside 2 hogs: flagged", "%", share([not one.trusted for one in done]), note=worst(run, trusted)),
    ]


def share(held: Sequence[bool]) -> float | None:
    """Percent of ``held`` that hold; None for none at all."""
    return 100 * sum(held) / len(held) if held else None


def worst(run: Run, trusted: Sequence[Cell]) -> str:
    """The note on trusted cells."""
    if not trusted:
        return run.note("no cell was trusted")
    errors = sorted(one.error for one in trusted)
    return run.note(f"{len(trusted)} cells; error {100 * errors[len(errors) // 2]:.2f} % in the middle, {100 * errors[-1]:.2f} % at most")


def foreign_note(run: Run, foreign: Foreign) -> str:
    """What others used, beside a share that depends on it."""
    return run.note(str(foreign))
