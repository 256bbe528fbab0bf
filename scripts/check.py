"""Runs every check of the house and ends with 1 if one fails: ``python scripts/check.py``; ``--all`` adds the slow tests.

The tests that need a GPU, MNIST's files or the peer sparseprop are never among them: ``python -m pytest -m gpu``, ``-m data``, ``-m sparseprop``;
those that need torch-sparse are among all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
BIN = Path(sys.executable).parent  # the tools of the environment that runs this script
SLOW = "slow or ray or browser"
EXTRA = "torch_sparse"
PARALLEL = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")  # not for tests that start fleets or take times


@dataclass(frozen=True)
class Check:
    """A command, and what to run when it fails."""

    name: str
    command: tuple[str, ...]
    fix: str = ""


def checks(everything: bool) -> list[Check]:
    """The checks, quick ones first."""
    found = [
        Check("lint", (PYTHON, "-m", "ruff", "check", "."), "python -m ruff check --fix ."),
        Check("format", (PYTHON, "-m", "ruff", "format", "--check", "."), "python -m ruff format ."),
        Check("imports", (str(BIN / "lint-imports"),)),
        Check("types", (PYTHON, "-m", "mypy")),
        Check("docs", (PYTHON, "docs/generate.py", "--check"), "python docs/generate.py"),
        Check(
            "tests", (PYTHON, "-m", "pytest", "-q", *PARALLEL, "-m", f"not ({SLOW} or backends or gpu or data or {EXTRA} or sparseprop)")
        ),
    ]
    if everything:
        quick_extra = f"{EXTRA} and not ({SLOW} or gpu)"
        found.append(Check("torch-sparse tests", (PYTHON, "-m", "pytest", "-q", "-m", quick_extra)))
        slow = (PYTHON, "-m", "pytest", "-q", "--durations=15")
        found.append(Check("slow tests", (*slow, *PARALLEL, "-m", f"({SLOW}) and not (alone or backends or gpu)")))
        found.append(Check("tests alone", (*slow, "-m", f"({SLOW}) and alone and not (backends or gpu)")))
        found.append(Check("back-end tests", (*slow, "-m", "backends")))
    return found


def run(check: Check) -> tuple[bool, float]:
    """Whether it passed, and its seconds; the output of the tests is shown as it comes, of the others when they fail."""
    is_long = "pytest" in check.command
    begin = time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": "1"} if "-n" in check.command else None  # a core for each process
    done = subprocess.run(
        check.command, cwd=ROOT, env=env, stdout=None if is_long else subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode and done.stdout:
        sys.stdout.write(done.stdout.decode(errors="replace"))
    return done.returncode == 0, time.monotonic() - begin


def _short(part: str) -> str:
    return "python" if part == PYTHON else part.removeprefix(f"{BIN}/")


def main() -> int:
    """1 if a check failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="add the tests marked slow, ray or browser")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this check; repeatable")
    arguments = parser.parse_args()
    chosen = checks(arguments.all or bool(arguments.only))
    if arguments.only:
        unknown = set(arguments.only) - {c.name for c in chosen}
        if unknown:
            parser.error(f"no such check: {', '.join(sorted(unknown))}; valid: {', '.join(c.name for c in chosen)}")
        chosen = [c for c in chosen if c.name in arguments.only]
    lines = []
    failed = False
    for number, check in enumerate(chosen, start=1):
        sys.stdout.write(f"[{number}/{len(chosen)}] {check.name}: {' '.join(_short(part) for part in check.command)}\n")
        sys.stdout.flush()
        passed, seconds = run(check)
        failed = failed or not passed
        fix = f"  fix: {check.fix}" if check.fix and not passed else ""
        lines.append(f"{'ok' if passed else 'FAILED':<7} {check.name:<18} {seconds:6.1f} s{fix}\n")
    sys.stdout.writelines(["\n", *lines])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
