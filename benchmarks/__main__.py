"""Runs benchmark suites and keeps their figures, per machine, in benchmarks/results/SUITE-MACHINE.json.

Every figure is printed beside its target. "not run" (with the reason) is neither kept nor missed, and neither is UNPROVEN: a timing that is not
trustworthy, or any figure of --quick. What is left out with --only keeps its older value and date in the file; figures of --quick never replace
those of a full run. ops has options of its own: ops --help.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence

from benchmarks.harness import RESULTS, SCHEMA, Book, Found, Part, Row, about, describe, results_folder, run_part
from benchmarks.suites import SUITES, listing


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends with 2 if they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"suites and their parts:\n{listing()}\n\nexit codes: 0 nothing missed, 1 a target is missed or a part broke, 2 bad usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", choices=[*SUITES, "all"], help="one of them, or all")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="ID_OR_WORD", help="parts with this id or this word in their title"
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--daily", action="store_true", help="only the parts that are short enough for every day (marked *)")
    when.add_argument("--nightly", action="store_true", help="all parts, the long ones too; the default")
    parser.add_argument("--quick", action="store_true", help="few cells: shows that it works, not how well")
    parser.add_argument("--require-all", action="store_true", help="what was not run counts as missed")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout, the lines for people on stderr")
    parser.add_argument(
        "--results", type=results_folder, default=RESULTS, metavar="FOLDER", help="where the file is kept; default: benchmarks/results"
    )
    options = parser.parse_args(arguments)
    suites = SUITES if options.suite == "all" else {options.suite: SUITES[options.suite]}
    options.parts = {
        suite: [part for part in parts if part.is_asked(options.only) and (part.daily or not options.daily)]
        for suite, parts in suites.items()
    }
    unknown = [word for word in options.only if not any(part.is_asked([word]) for parts in suites.values() for part in parts)]
    if unknown:
        there = ", ".join(part.id for parts in suites.values() for part in parts)
        parser.error(f"nothing in {options.suite} is called {', '.join(map(repr, unknown))}; there are {there}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a target is missed or a part broke; of ``ops`` what its own command says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["ops"]:
        from benchmarks.ops.command import main as ops

        return ops(given[1:])
    options = asked(given)
    if options.suite == "gpu":
        from benchmarks.gpu.device import why_not

        reason = why_not()
        if reason is not None:
            print(f"gpu was not run: {reason}", file=sys.stderr)
            return 2
    from sparsefleet.measure.fingerprint import fingerprint

    machine, talk = fingerprint(), sys.stderr if options.json else sys.stdout
    done: list[Row] = []
    words: Counter[str] = Counter()
    for suite, parts in options.parts.items():
        if not parts:
            continue
        book = Book(suite, SUITES[suite], machine, options.results)
        print(f"{suite} on {describe(machine)}", file=talk)
        for part in parts:
            found = run_part(part, quick=options.quick)
            rows = found.rows(part, about(machine, quick=options.quick))
            book.take(part, rows, found.raw)
            done += [{"suite": suite, **row} for row in rows]
            words.update(figure.word for figure in found.figures)
            print(said(part, found), file=talk, flush=True)
        ran = {part.id for part in parts}
        kept = sum(row["id"] not in ran for row in book.rows)
        print(f"  written to {book.path.name}{f', beside {kept} figures of earlier runs' if kept else ''}", file=talk)
    print(", ".join(f"{n} {word}" for word, n in words.items()), file=talk)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "machine": machine["id"], "figures": done}, allow_nan=False))
    return int(bool(words["MISSED"] or words["BROKEN"] or (options.require_all and words["not run"])))


def said(part: Part, found: Found) -> str:
    """A part's figures for people."""
    return "\n".join([f"{part.id}  {part.title}  ({found.seconds:.0f} s)", *(f"  {figure.line()}" for figure in found.figures)])


if __name__ == "__main__":
    sys.exit(main())
