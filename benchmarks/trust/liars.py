"""MT-05: the seven lying plugins of the tests, as real plugins through the real measuring path, by pytest in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.figures import Figure, NotRun, Run

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "measure" / "test_liars.py"
LIARS = {
    "cached": "cached output",
    "skipping": "skips work",
    "threads": "wrong thread count",
    "precision": "changes a precision flag",
    "disguised": "masked dense, labelled sparse",
    "spilling": "writes outside its mask",
    "turning": "wrong after the check",
}
_CAUGHT, _HONEST = "test_a_liar_is_caught[", "test_the_honest_layer"


def figures(run: Run) -> list[Figure]:
    """Liars whose every test passed, which asks for the reason by name; and whether the honest layer was let pass."""
    if not TESTS.exists():
        raise NotRun("the tests are not here")
    outcomes = tested()
    caught = {liar: [ok for name, ok in outcomes.items() if name.startswith(f"{_CAUGHT}{liar}-")] for liar in LIARS}
    run.keep(outcomes)
    free = [f"{liar} ({LIARS[liar]})" for liar, oks in caught.items() if not oks or not all(oks)]
    honest = [ok for name, ok in outcomes.items() if name.startswith(_HONEST)]
    n_cases = sum(map(len, caught.values()))
    note = f"not caught: {', '.join(free)}" if free else f"{n_cases} cases: {', '.join(LIARS)}"
    return [
        Figure("liars caught, with their lie named", "liars", len(LIARS) - len(free), target=len(LIARS), note=note),
        Figure(
            "honest layers let pass", "%", 100 * sum(honest) / len(honest) if honest else None, target=100.0, note=f"{len(honest)} cases"
        ),
    ]


def tested() -> dict[str, bool]:
    """Whether each test passed, by name.

    Raises:
        RuntimeError: pytest ran no test.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(TESTS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if not cases:
        raise RuntimeError(f"pytest ended with {done.returncode} and ran nothing:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {str(case.get("name")): not list(case) for case in cases}
