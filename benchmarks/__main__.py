"""Runs a benchmark suite and keeps its figures: ``python -m benchmarks SUITE [its options]``; without a suite, or with ``all``, every one.

Figures are printed beside their targets and written to ``benchmarks/results/SUITE-MACHINE.json``. What could not be run says so.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SUITES = {
    "cli": "benchmarks.cli.times",
    "fleet": "benchmarks.fleet.throughput",
    "chaos": "benchmarks.chaos.kill_workers",
    "trust": "benchmarks.trust.planted",
}
RESULTS = Path(__file__).parent / "results"


def exists(module: str) -> bool:
    """Whether the suite is here."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not here either
        return False


def run(suite: str, arguments: list[str]) -> int:
    """The suite's exit code; 0 if it is not here, which is said."""
    if not exists(SUITES[suite]):
        print(f"{suite}: not run, {SUITES[suite]} is not here")
        return 0
    from sparsefleet.measure.fingerprint import fingerprint

    kept = [] if "--json" in arguments else ["--json", str(RESULTS / f"{suite}-{fingerprint()['id'].removeprefix('fp:')}.json")]
    return subprocess.call([sys.executable, "-m", SUITES[suite], *arguments, *kept])


def main() -> int:
    """1 if a suite missed a target, 2 if there is no such suite."""
    asked, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("all", [])
    if asked in ("-h", "--help"):
        print(f"{__doc__}\nSuites: {', '.join(SUITES)}")
        return 0
    if asked not in (*SUITES, "all"):
        print(f"no suite {asked!r}; there are {', '.join(SUITES)} and all", file=sys.stderr)
        return 2
    codes = [run(suite, arguments) for suite in (SUITES if asked == "all" else [asked])]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
