"""From a grid file to a Grid, or to one error that lists everything that is wrong with the file.

The format is described in docs/grids.md. Three forms of an axis entry::

    axes:
      layer: [masked, csr]                                   # plain values
      method:
        - {rewirer: rigl, train: {epochs: 12}}               # a method with overrides of what stands above
        - {rewirer: set, when: {layer: csr}}                 # … that exists for some points only
      activation:
        - relu
        - {value: k-winners, optimizer: {sgd: {lr: 0.005}}}  # any other axis: the same with ``value``
      train.batch_size: {values: [32, 64], when: {layer: csr}}  # the whole axis; elsewhere the base value stands
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefleet.errors import InvalidGrid, PluginError, UserError
from sparsefleet.grid.model import Grid
from sparsefleet.grid.read import read_grid
from sparsefleet.grid.secrets import refuse_secrets
from sparsefleet.grid.yaml_source import Source, parse, quoted, read_text

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

SHIPPED = Path(__file__).resolve().parent.parent / "grids"


def shipped_grids() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def name_of(path: str) -> str:
    """How a user names the grid file at ``path``: the bare name if it is a shipped one."""
    return Path(path).stem if Path(path).parent == SHIPPED else path


def find_grid(path_or_name: str) -> Path:
    """The file behind a path or the name of a shipped grid; a shipped name wins over a file without a suffix.

    Raises:
        UserError: neither exists.
    """
    names = shipped_grids()
    if path_or_name in names:
        return SHIPPED / f"{path_or_name}.yaml"
    path = Path(path_or_name)
    try:
        there = path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        there = False
    if there:
        return path
    close = difflib.get_close_matches(path_or_name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"no grid file {quoted(path_or_name, 200)}", fix=f"{hint}give a path, or one of the shipped grids: {', '.join(names)}")


def load_grid(path_or_name: str, *, set_: Sequence[str] = (), catalog: Catalog | None = None) -> Grid:
    """The grid of a file or of a shipped name.

    Args:
        set_: overrides of base keys, ``KEY=VALUE`` with the value in YAML, e.g. ``train.epochs=2``.
        catalog: the plugins to check against; default: the installed ones.

    Raises:
        InvalidGrid: the file is wrong; all its problems in one message.
        UserError: there is no such file, or it cannot be read.
        PluginError: the only problem is that plugins it names are broken.
    """
    path = find_grid(path_or_name)
    label = str(path) if str(path).isprintable() else ascii(str(path))
    return load_text(read_text(path), label, set_=set_, catalog=catalog)


def load_text(text: str, label: str, *, set_: Sequence[str] = (), catalog: Catalog | None = None) -> Grid:
    """The grid of a text; see ``load_grid``. ``label`` stands for the file's name."""
    source = parse(text, label)
    refuse_secrets(source)
    source.raise_problems()
    if catalog is None:
        from sparsefleet.registry import catalog as installed

        catalog = installed()
    settings = [_setting(item, n) for n, item in enumerate(set_)]
    grid = read_grid(source, catalog, settings)
    _raise(source)
    assert grid is not None
    return grid


def _raise(source: Source) -> None:
    if source.problems and source.broken == len(source.problems):
        raise PluginError("\n".join(message for _, message in sorted(source.problems, key=lambda p: p[0])))
    source.raise_problems()


def _setting(item: str, n: int) -> tuple[str, Source]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {quoted(item)} is not KEY=VALUE", fix="e.g. --set train.epochs=2")
    value = parse(text, f"--set {key.strip()}")
    refuse_secrets(value, key.strip())
    if value.problems:
        raise InvalidGrid([message for _, message in value.problems])
    return key.strip(), value
