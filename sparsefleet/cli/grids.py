"""What ``submit grid``, ``plan`` and ``run`` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sparsefleet.grid.model import Grid
    from sparsefleet.registry import Catalog

set_option = click.option(
    "--set", "set_", multiple=True, metavar="KEY=VALUE", help="Override a base key of the grid, e.g. train.epochs=2. Repeatable."
)
only_option = click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only trials that fit: field=glob, comma-separated, e.g. method=rigl,density=0.1; a bare glob is for the method. Repeatable.",
)


def loaded_grid(grid: str, name: str | None, set_: Sequence[str], plugins: Catalog) -> Grid:
    """The grid with what the command line overrides."""
    from sparsefleet.grid.load import load_grid

    renamed = [] if name is None else [f"name={json.dumps(name)}"]
    return load_grid(grid, set_=[*set_, *renamed], catalog=plugins)
