"""A reproduction: published figures, the budget that they were trained with, and the grid that trains them here. One YAML file each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsefleet.errors import InvalidGrid, UserError, did_you_mean
from sparsefleet.grid.load import load_grid, load_text
from sparsefleet.grid.yaml_source import parse, read_text

if TYPE_CHECKING:
    from sparsefleet.grid.model import Grid
    from sparsefleet.registry import Catalog

SHIPPED = Path(__file__).resolve().parent.parent / "reproductions"
Unit = Literal["accuracy", "accuracy %", "error %"]
Selector = dict[str, Any]
"""Which configuration: ``method`` (its label), ``arm``, ``density``, a plugin family by the plugin's name, or a dotted path of the spec."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Figure(_Strict):
    """A published figure, and how far ours may lie from it."""

    select: Selector
    published: float
    se: float | None = Field(None, gt=0, description="its published standard error")
    tolerance: float = Field(gt=0, description="in the unit of the figure, to either side")
    because: str = Field("", description="the reason for the tolerance")
    unit: Unit
    budget: dict[str, Any]


class Pair(_Strict):
    """Two configurations, compared by seed."""

    lower: Selector
    higher: Selector


class Order(_Strict):
    """A published order: ``higher`` is better than ``lower``, or, with ``than``, by more than in that pair.

    Attributes:
        strict: the interval must lie above ``margin``; else it is enough that it does not lie below.
        metric: ``accuracy``, or the name of a curve whose last value counts.
    """

    lower: Selector
    higher: Selector
    than: Pair | None = None
    strict: bool = True
    margin: float = 0.0
    metric: str = "accuracy"
    because: str = ""
    budget: dict[str, Any]

    @property
    def selectors(self) -> list[Selector]:
        """All configurations that take part."""
        return [self.higher, self.lower, *([self.than.higher, self.than.lower] if self.than else [])]


class Needs(_Strict):
    """What a machine must have."""

    gpu: bool = False


class Reproduction(_Strict):
    """A published table.

    Attributes:
        source: paper, table, file of a repository.
        cost: what a whole run takes, in words.
        budget: what every figure was trained with: dotted paths of the spec, a plugin family by name, and ``seeds``, ``steps`` and ``n_test``.
            A trial with anything else is no reproduction. A row may replace parts of it.
        differs: what we are known to do otherwise than the publication; printed under every result.
        grid: the name of a shipped grid, or a grid.
    """

    name: str
    title: str
    source: str
    cost: str
    needs: Needs = Needs()
    differs: tuple[str, ...] = ()
    budget: dict[str, Any]
    grid: str | dict[str, Any]
    rows: tuple[Figure | Order, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_rows(cls, data: Any) -> Any:
        """Rows inherit ``unit``, ``tolerance`` and ``because`` of the file where they have none, and parts of the budget."""
        if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
            return data
        data = dict(data)
        shared = {name: data.pop(name) for name in ("unit", "tolerance", "because") if name in data}
        budget = data.get("budget") or {}
        rows = [
            {**(shared if "published" in row else {}), **row, "budget": {**budget, **row.get("budget", {})}}
            if isinstance(row, dict)
            else row
            for row in data["rows"]
        ]
        return {**data, "rows": rows}

    def loaded_grid(self, catalog: Catalog, set_: Sequence[str] = ()) -> Grid:
        """The grid; with ``set_`` it is not the published one any more, which the result says."""
        if isinstance(self.grid, str):
            return load_grid(self.grid, set_=set_, catalog=catalog)
        return load_text(json.dumps(self.grid, indent=1), f"{self.name} (grid)", set_=set_, catalog=catalog)


def shipped_reproductions() -> list[str]:
    """Names of the reproductions that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_reproduction(path_or_name: str) -> Reproduction:
    """The reproduction of a shipped name or of a file.

    Raises:
        UserError: there is none.
        InvalidGrid: the file is wrong; all its problems in one message.
    """
    names = shipped_reproductions()
    path = SHIPPED / f"{path_or_name}.yaml" if path_or_name in names else Path(path_or_name)
    if path_or_name not in names and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"no reproduction {path_or_name!r}", fix=f"{did_you_mean(path_or_name, names)}, or a .yaml file")
    source = parse(read_text(path), str(path))
    source.raise_problems()
    try:
        return Reproduction.model_validate(source.data)
    except ValidationError as error:
        raise InvalidGrid([f"{path} {_place(item)}: {item['msg']}" for item in error.errors()]) from error


def _place(item: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in item["loc"]) or "(top)"
