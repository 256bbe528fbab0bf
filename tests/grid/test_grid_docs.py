"""The grids of docs/grids.md load, and the page names every key."""

from __future__ import annotations

import re
from pathlib import Path

from grid_plugins import CATALOGUE, GIB

from sparsefleet.grid.expand import Skip, walk
from sparsefleet.grid.load import load_text
from sparsefleet.grid.read import OTHER_KEYS
from sparsefleet.grid.settings import METHOD, ROOT, Measure
from sparsefleet.registry import catalog

PAGE = (Path(__file__).parents[2] / "docs" / "grids.md").read_text()


def test_the_examples_load_and_expand() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 3
    for text in examples:
        for installed in (catalog(), CATALOGUE):
            grid = load_text(text, "docs/grids.md", catalog=installed)
            assert not [item for item in walk(grid, installed, 24 * GIB) if isinstance(item, Skip)]


def test_every_key_is_documented() -> None:
    keys = {*ROOT, *OTHER_KEYS, *METHOD.fields, *Measure.model_fields, *(name for slot in ROOT.values() for name in slot.fields)}
    assert sorted(key for key in keys if f"`{key}`" not in PAGE and f"`{key}:" not in PAGE) == []
