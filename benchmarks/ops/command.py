"""Times our sparse layer beside its peers: dense, torch's sparse tensors, torch-sparse, SparseProp.

Every peer computes with the same matrix, by the product's own estimator: in pairs with ours, in the same rounds, in random order. No clock
starts before output and gradients agree with float64. Ratios are by forward + backward (dX and dW), with the feature-major layout kept;
the times with transposes in and out stand below. Peers that cannot run here are told with their reason. Needs neither ray nor mlflow.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, NotRun, Run
from benchmarks.harness import RESULTS, SCHEMA, Book, Found, Part, about, describe, results_folder
from benchmarks.ops.cases import CASES, NAMES, Case, free_case, peer_called
from benchmarks.suites import SUITES

EXAMPLES = """
examples:
  python -m benchmarks ops --case b64                           one case with all its peers
  python -m benchmarks ops --case a --peers dense,torch-csr-sddmm --threads 1
  python -m benchmarks ops --case b1 --json > b1.json           the figures as JSON on stdout
  python -m benchmarks ops --in 1024 --out 4096 --density 0.05 --batch 32
  python -m benchmarks ops --case b64 c64 c256 --peers dense,dense-tf32,dense-bf16,torch-csr-sddmm,torch_sparse.spmm
                                                                on a GPU, in less than 10 minutes
  python -m benchmarks ops --case mid --quick --results out     few rounds: shows that it works, not how well

exit codes: 0 measured, whatever the targets say; 1 a correctness check failed; 2 bad usage"""
FREE = ("n_in", "n_out", "density", "batch")


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with ``cases`` and ``names``; ends with 2 if they make no sense."""
    listed = "\n".join(f"  {case.id:11} {case.title} (about {case.minutes:.0f} min)" for case in CASES.values())
    peers = "\n".join(f"  {name:19} {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ops",
        description=__doc__,
        epilog=f"cases (two cores):\n{listed}\n\npeers:\n{peers}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", nargs="+", action="extend", default=[], metavar="CASE", help="one or several; default: all")
    parser.add_argument("--in", dest="n_in", type=int, metavar="N", help="a layer of one's own: inputs")
    parser.add_argument("--out", dest="n_out", type=int, metavar="N", help="its outputs")
    parser.add_argument("--density", type=float, metavar="SHARE", help="its share of the connections that are there, in (0, 1]")
    parser.add_argument("--batch", type=int, metavar="N", help="its batch")
    parser.add_argument("--peers", default="", metavar="LIST", help="names with commas between them; default: all that can run")
    parser.add_argument("--threads", type=int, metavar="N", help="on a CPU; default: all (sparseprop: 1)")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how well")
    parser.add_argument("--json", action="store_true", help="one JSON object per case on stdout, the lines for people on stderr")
    parser.add_argument(
        "--results", type=results_folder, default=RESULTS, metavar="FOLDER", help="where it is kept; default: benchmarks/results"
    )
    options = parser.parse_args(arguments)
    options.cases = _cases(parser, options)
    names = [part.strip() for part in options.peers.split(",") if part.strip()]
    unknown = [name for name in names if peer_called(name) is None]
    if unknown:
        parser.error(f"no peer is called {', '.join(map(repr, unknown))}; there are {', '.join(NAMES)}")
    options.names = tuple(name for name in NAMES if name in map(peer_called, names))
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def _cases(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Case]:
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no case is called {', '.join(map(repr, unknown))}; there are {', '.join(CASES)}")
    given = [name for name in FREE if getattr(options, name) is not None]
    if not given:
        return [CASES[name] for name in options.case] or list(CASES.values())
    if options.case or len(given) < len(FREE):
        parser.error("a layer of one's own takes --in, --out, --density and --batch together, and no --case")
    values = [getattr(options, name) for name in FREE]
    if min(values[:2] + values[3:]) <= 0 or not 0 < options.density <= 1:  # nan is neither
        parser.error(f"sizes must be positive and the density in (0, 1], got {', '.join(map(str, values))}")
    return [free_case(*values)]


def case_part(run: Run) -> list[Figure]:
    """One case as a part of ``python -m benchmarks all``."""
    from benchmarks.ops.measure import How, measure
    from benchmarks.ops.table import figures

    case = CASES[run.id]
    found = measure(case, How(quick=run.quick), run.say)
    run.keep(found)
    return figures(case, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a correctness check failed."""
    options = asked(arguments)
    from benchmarks.ops.measure import Broken, How, measure
    from benchmarks.ops.table import figures, table
    from sparsefleet.measure.fingerprint import fingerprint

    machine, talk = fingerprint(), sys.stderr if options.json else sys.stdout
    print(f"ops on {describe(machine)}", file=talk)
    failed = False
    for case in options.cases:
        begun = time.monotonic()
        try:
            found = measure(case, How(options.names, options.threads, options.quick), _say)
            made = figures(case, found)
            print(table(found), file=talk)
        except (Broken, NotRun) as why:
            word = "broken" if isinstance(why, Broken) else "not_run"
            found, made = {"case": case.id, word: str(why)}, [Figure(case.title, "", note=str(why), broken=word == "broken")]
        lines = [figure.line() for figure in made if figure.target is not None or figure.broken or "ours" not in found]
        print("\n".join(f"  {line}" for line in lines), file=talk, flush=True)
        failed = failed or any(figure.broken for figure in made)
        path = _keep(case, made, found, machine, options, time.monotonic() - begun)
        print(f"  written to {path.name}", file=talk)
        if options.json:
            print(json.dumps({"schema": SCHEMA, "machine": machine["id"], **found}, allow_nan=False), flush=True)
    return int(failed)


def _keep(
    case: Case, made: list[Figure], found: dict[str, Any], machine: dict[str, Any], options: argparse.Namespace, seconds: float
) -> Path:
    """Into the results file of this machine; the whole of a case replaces the older one only if no peer was left out."""
    part = Part(case.id, case.title, "")
    book = Book("ops", SUITES["ops"], machine, options.results)
    rows = Found(made, seconds=seconds).rows(part, about(machine, quick=options.quick))
    is_whole = "ours" in found and not options.names
    book.take(part, rows, found if is_whole else None)
    return book.path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
