"""docs/sources.md names grids, rows and pictures that exist, and every section of the documents."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from sparsefleet.cli.labels import matches
from sparsefleet.grid.expand import Point, expand
from sparsefleet.grid.load import find_grid, load_grid, shipped_grids
from sparsefleet.registry import catalog
from sparsefleet.report.pictures.draw import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ") and "| grid |" not in line
]

SECTIONS_OF_SPARSELINEAR = (
    "Setup",
    "Time and memory",
    "Random inputs",
    "MNIST, dense",
    "MNIST, sparse",
    "User-defined connections",
    "Dynamic connections",
    "Small world",
    "Activation sparsity, dense",
    "Activation sparsity, sparse",
    "Very wide",
)


@pytest.fixture(scope="module", autouse=True)
def connections(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of data sets with the file that sparselinear-user reads, made by the command in that grid's own comment."""
    root = tmp_path_factory.mktemp("data")
    (command,) = re.findall(r'python -c "(.*)"', find_grid("sparselinear-user").read_text())
    subprocess.run([sys.executable, "-c", command], cwd=root, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEFLEET_DATA", str(root))
        yield


@lru_cache
def points(name: str) -> list[Point]:
    return list(expand(load_grid(name, set_=["seeds=1"]), catalog()))


def test_the_table_is_read() -> None:
    assert len(ROWS) > 50
    assert {len(row) for row in ROWS} == {5}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_what_is_there(row: list[str]) -> None:
    _, grid, pattern, pictures, _ = row
    assert grid in shipped_grids()
    assert [p for p in points(grid) if matches(pattern.strip("`"), p.spec.to_json(), p.arm, p.spec.spec_id)]
    assert [kind for kind in pictures.split(", ") if kind not in KINDS] == []


def test_a_wrong_row_would_be_noticed() -> None:
    assert not [p for p in points("sparsity-basics") if matches("method=rigl", p.spec.to_json(), p.arm, p.spec.spec_id)]


def test_every_section_of_the_documents_is_there() -> None:
    told = {document.partition("\n")[0]: document for document in PAGE.split("\n## ")[1:]}
    assert [document[:9] for document in told] == ["Module 05", "Fun with ", "Module 07", "Lecture 3", "SparseLin"]
    for document, prefix, n in (("Module 05", "", 6), ("Fun", "slide ", 15), ("Module 07", "", 6), ("Lecture", "part ", 5)):
        (text,) = (body for name, body in told.items() if name.startswith(document))
        assert [i for i in range(1, n + 1) if f"| {prefix}{i}. " not in text] == []
    (text,) = (body for name, body in told.items() if name.startswith("SparseLinear"))
    assert [section for section in SECTIONS_OF_SPARSELINEAR if f"| {section}" not in text] == []


def test_every_trial_that_a_source_grid_names_has_a_row() -> None:
    """The other way round: a grid runs nothing that the page does not tell."""
    for grid in sorted({row[1] for row in ROWS}):
        patterns = [row[2].strip("`") for row in ROWS if row[1] == grid]
        untold = [
            p.spec.spec_id
            for p in points(grid)
            if not p.added and not any(matches(one, p.spec.to_json(), p.arm, p.spec.spec_id) for one in patterns)
        ]
        assert untold == [], grid
