"""A process dies where it is asked to, once, and not at a point that does not exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.crash_points import POINTS, VARIABLE, parsed, refuse_typos
from sparsefleet.errors import UserError

PASS = "from sparsefleet.crash_points import passing\nfor i in range(3): passing('commit-inside'); print(i, flush=True)"


def test_it_dies_at_the_second_passing_of_its_home_and_not_again(tmp_path: Path) -> None:
    environment = {**os.environ, VARIABLE: "commit-inside:2", "SPARSEFLEET_HOME": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", PASS], env=environment, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [run.returncode for run in runs] == [-signal.SIGKILL, 0]
    assert [run.stdout.split() for run in runs] == [["0"], ["0", "1", "2"]]


@pytest.mark.parametrize("text", ["commit-insid:1", "commit-inside", "commit-inside:0", "commit-inside:x"])
def test_a_typo_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=VARIABLE):
        refuse_typos({VARIABLE: text})


def test_every_point_is_passed_somewhere_and_every_passing_is_a_point() -> None:
    import re

    import sparsefleet

    sources = [path.read_text() for path in Path(sparsefleet.__file__).parent.rglob("*.py")]
    assert {name for source in sources for name in re.findall(r'passing\("([a-z-]+)"\)', source)} == set(POINTS)
    assert parsed("lease-inside:1, lease-inside:3,child-end:2") == {"lease-inside": {1, 3}, "child-end": {2}}
