"""Exact counts without expansion.

Axes that write different places of a state are independent, so their counts multiply. Axes that write the same place, or that one condition reads
together, form one *factor*, whose values are listed. The values of a factor fall into *classes*: those that no condition and no rule of ``fit`` can tell
apart. One point per combination of classes is judged, and stands for all of them.

Twins and control arms are images of points: the twin forgets density and layer, say. How many different images there are follows from how many different
values each factor has after the image is taken, class by class. Nothing is sampled: the figures are those that a full expansion would give, and the tests
compare the two.

A selection's candidates multiply like the values of an axis, only that a value set by an axis may take the selection's place. So every cell carries its
own candidates, as picks, and a selection of the base belongs to the factor of the axes that write its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod
from typing import Any

from sparsefleet.errors import UserError
from sparsefleet.grid.expand import compose, lenient, stands
from sparsefleet.grid.model import Atom, Choice, Grid
from sparsefleet.grid.selecting import is_open, picks_of, places
from sparsefleet.grid.settings import Path, State, Unplaced, value_at
from sparsefleet.trial.spec import canonical_json

MAX_CELLS = 20_000
MAX_COMBINATIONS = 20_000

Cell = tuple[Choice, ...]
Features = Callable[[State], Any]


class TooTangled(UserError):
    """A grid whose axes depend on each other in too many combinations to be counted without being expanded."""


@dataclass(frozen=True)
class Factor:
    """Axes that cannot be counted apart."""

    axes: tuple[int, ...]
    paths: tuple[Path, ...]
    cells: tuple[Cell, ...]


def has_selections(grid: Grid) -> bool:
    """Whether any point of the grid has candidates; the ``dense:`` block aside."""
    written = [a for axis in grid.axes for choice in axis.choices for a in (*choice.sets, *choice.overrides)]
    return any(True for _ in places(grid.base)) or is_open([*written, *(a for entry in grid.include for a in entry.sets)])


def even_candidates(grid: Grid) -> int:
    """How many candidates every point of the product has; 1 where some have more than others."""
    writes = set().union(*(_writes(grid, n) for n in range(len(grid.axes))))
    of_axes = is_open(a for axis in grid.axes for choice in axis.choices for a in (*choice.sets, *choice.overrides))
    touched = any(_overlap(path, written) for path, _ in places(grid.base) for written in writes)
    return 1 if of_axes or touched else len(picks_of(grid.base))


def _overlap(a: Path, b: Path) -> bool:
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def _writes(grid: Grid, n: int) -> set[Path]:
    return {a.path for choice in grid.axes[n].choices for a in (*choice.sets, *choice.overrides)}


def atoms_of(grid: Grid) -> list[Atom]:
    """Every atom that decides whether a point exists."""
    conditions = [*grid.exclude, *(c for axis in grid.axes for choice in axis.choices for c in choice.when)]
    found: dict[str, Atom] = {repr(atom): atom for condition in conditions for atom in condition.atoms}
    return list(found.values())


def factors_of(grid: Grid) -> list[Factor]:
    """The independent groups of axes.

    Raises:
        TooTangled: one of them has more than 20,000 combinations.
    """
    n_axes = len(grid.axes)
    writes = [*(_writes(grid, n) for n in range(n_axes)), *({path} for path, _ in places(grid.base))]
    group = list(range(len(writes)))

    def join(members: Iterable[int]) -> None:
        roots = {group[m] for m in members}
        if roots:
            first = min(roots)
            group[:] = [first if g in roots else g for g in group]

    for a, b in combinations(range(len(writes)), 2):
        if any(_overlap(p, q) for p in writes[a] for q in writes[b]):
            join((a, b))
    together = [atom.reads for atom in atoms_of(grid)]
    if "layer" not in grid.base:  # the default layer depends on the method
        together.append((("layer",), ("method",)))
    for paths in together:
        join(n for n in range(len(writes)) if any(_overlap(p, q) for p in writes[n] for q in paths))
    factors = []
    for root in sorted(set(group)):
        members = tuple(n for n in range(n_axes) if group[n] == root)
        written = tuple(sorted(set().union(*(writes[n] for n in range(len(writes)) if group[n] == root))))
        n_cells = prod(len(grid.axes[n].choices) for n in members)
        if n_cells > MAX_CELLS:
            names = ", ".join(grid.axes[n].name for n in members)
            raise TooTangled(f"the axes {names} set or test the same keys, in {n_cells:,} combinations; at most {MAX_CELLS:,} are counted")
        cells = [
            (*cell, *([Choice((), picks=picks)] if picks else []))
            for cell in product(*(grid.axes[n].choices for n in members))
            for picks in picks_of(lenient(grid.base, cell), written)
        ]
        if len(cells) > MAX_CELLS:
            raise TooTangled(f"selections make {len(cells):,} combinations of {', '.join('.'.join(path) for path in written)}")
        factors.append(Factor(members, written, tuple(cells)))
    return factors


def classes_of(
    grid: Grid, factor: Factor, features: Features | None = None, matters: Callable[[Path], bool] | None = None
) -> list[list[Cell]]:
    """The factor's cells, those that nothing tells apart together.

    Args:
        features: what else than conditions tells states apart; of the places that ``matters`` is true for.
    """
    atoms = [atom for atom in atoms_of(grid) if any(_overlap(p, q) for p in atom.reads for q in factor.paths)]
    conditioned = any(choice.when for cell in factor.cells for choice in cell)
    if not atoms and not conditioned and not (features and any(matters(path) if matters else True for path in factor.paths)):
        return [list(factor.cells)]
    classes: dict[str, list[Cell]] = {}
    for cell in factor.cells:
        state = lenient(grid.base, cell)
        signature: list[Any] = [[atom.holds(state) for atom in atoms], [repr(c) for choice in cell for c in choice.when]]
        if features is not None:
            try:
                relevant = features(compose(grid.base, cell))
                signature.append([value_at(relevant, path) for path in factor.paths])
            except Unplaced as error:
                signature.append(str(error))
        classes.setdefault(canonical_json(signature), []).append(cell)
    return list(classes.values())


def ordered(grid: Grid, factors: Sequence[Factor], cells: Sequence[Cell]) -> tuple[Choice, ...]:
    """One cell per factor as choices in the order of the axes, what is picked of selections last."""
    placed: dict[int, Choice] = {}
    picks: list[Choice] = []
    for factor, cell in zip(factors, cells, strict=True):
        placed.update(zip(factor.axes, cell, strict=False))
        picks += cell[len(factor.axes) :]
    return (*(placed[n] for n in range(len(grid.axes)) if n in placed), *picks)


def combinations_of(classes: Sequence[Sequence[list[Cell]]]) -> Iterator[tuple[int, ...]]:
    """Class numbers, one per factor.

    Raises:
        TooTangled: there are more than 20,000.
    """
    n = prod(len(of_factor) for of_factor in classes)
    if n > MAX_COMBINATIONS:
        raise TooTangled(f"the grid has {n:,} kinds of points; at most {MAX_COMBINATIONS:,} are told apart without expanding it")
    return product(*(range(len(of_factor)) for of_factor in classes))


def count_points(grid: Grid) -> int:
    """Points with their candidates and seeds, before skips."""
    beside = sum(len(entry.seeds) * len(picks_of(lenient(grid.base, [Choice(entry.sets)]))) for entry in grid.include)
    if not grid.has_product:
        return beside
    if not atoms_of(grid) and not has_selections(grid):
        return prod(len(axis.choices) for axis in grid.axes) * len(grid.seeds) + beside
    conditioned = {n for n in range(len(grid.axes)) if any(choice.when for choice in grid.axes[n].choices)}
    reads = [path for atom in atoms_of(grid) for path in atom.reads]
    total, tied, classes = 1, [], []
    for factor in factors_of(grid):
        if conditioned.isdisjoint(factor.axes) and not any(_overlap(p, q) for p in factor.paths for q in reads):
            total *= len(factor.cells)
            classes.append([[factor.cells[0]]])
        else:
            classes.append(classes_of(grid, factor))
        tied.append(factor)
    n = 0
    for numbers in combinations_of(classes):
        picked = [of_factor[k] for of_factor, k in zip(classes, numbers, strict=True)]
        choices = ordered(grid, tied, [cells[0] for cells in picked])
        if stands(grid, lenient(grid.base, choices), choices):
            n += prod(len(cells) for cells in picked)
    return total * n * len(grid.seeds) + beside
