from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import suites
from benchmarks.harness import RESULTS


def test_every_part_of_every_suite_is_there() -> None:
    """Modules and functions exist, by their source: importing them would need torch, ray and more."""
    root = Path(suites.__file__).parent.parent
    for parts in suites.SUITES.values():
        assert len({one.id for one in parts}) == len(parts)
        for one in parts:
            module, _, function = one.function.partition(":")
            assert f"\ndef {function}(" in (root / f"{module.replace('.', '/')}.py").read_text(), one.id


def test_every_fault_has_a_part_and_those_of_a_day_fit_into_a_quarter_of_an_hour() -> None:
    asked = [f"RF-{n:02}" for n in range(1, 25)] + [f"BI-{n:02}" for n in range(1, 7)] + [f"SE-{n:02}" for n in (1, 2, 3, 4, 6, 8)]
    chaos = {part.id: part for part in suites.SUITES["chaos"]}
    assert set(asked) - set(chaos) == set()
    took = _measured("chaos")
    assert sum(max(part.minutes, took.get(part.id, 0)) for part in chaos.values() if part.daily) <= 15


def test_parts_say_how_long_they_took() -> None:
    """Within a factor of three of a full run that is kept: machines differ, and so does what runs beside."""
    minutes = {part.id: part.minutes for part in suites.SUITES["chaos"]}
    took = {part: took for part, took in _measured("chaos").items() if part in minutes}
    assert took
    assert {part: (minutes[part], round(m, 1)) for part, m in took.items() if not m / 3 - 0.1 <= minutes[part] <= 3 * m + 0.2} == {}


def _measured(suite: str) -> dict[str, float]:
    """Minutes of each part's newest full run, of the slowest machine that has one."""
    longest: dict[str, float] = {}
    for path in RESULTS.glob(f"{suite}-*.json"):
        rows = sorted((row for row in json.loads(path.read_text())["figures"] if not row["quick"]), key=lambda row: str(row["date"]))
        for part, seconds in {row["id"]: row["seconds"] for row in rows}.items():
            longest[part] = max(longest.get(part, 0.0), seconds / 60)
    return longest


def test_help_imports_nothing_heavy() -> None:
    look = "import sys; from benchmarks.__main__ import asked; print([m for m in ('torch', 'ray', 'mlflow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_method_has_its_updates_timed():
    """The suites import nothing of the product, so the names stand there again."""
    from benchmarks.suites import PRUNERS, REWIRERS
    from sparsefleet.registry import catalog

    ours = [e for e in catalog().entries if e.distribution == "sparsefleet"]
    assert sorted(PRUNERS) == sorted(e.name for e in ours if e.family == "pruner")
    assert sorted([*REWIRERS, "static"]) == sorted(e.name for e in ours if e.family == "rewirer")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["magnitude/masked", "grasp/masked", "set/csr"])
def test_a_pruning_and_an_update_are_timed(part, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "updates", "--only", part, "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(suites.__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"choosing: {part}" in done.stdout + done.stderr
    assert "BROKEN" not in done.stdout + done.stderr
