"""A grid is kept: in the ledger, in every record, in MLflow. So it may hold no secret; a plugin reads those from the environment."""

from __future__ import annotations

from typing import Any

from sparsefleet.grid.yaml_source import Key, Source
from sparsefleet.redact import SHORTEST, is_secret_name, secret_in

_FIX = "a grid is kept in the ledger and in MLflow; let the plugin read it from the environment"


def refuse_secrets(source: Source, under: str = "") -> None:
    """Reports each secret of the file, comments included, by its line and without its value.

    Args:
        under: the key that the whole source is the value of.
    """
    if secret_in(source.text):
        for number, line in enumerate(source.text.splitlines(), 1):
            found = secret_in(line)
            if found:
                source.report((), f"holds {found}; {_FIX}", line=number)
    _look(source, (), source.data, under)


def _look(source: Source, key: Key, value: Any, name: str) -> None:
    if isinstance(value, dict):
        for inner, below in value.items():
            _look(source, (*key, inner), below, inner)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            _look(source, (*key, number), below, name)
    elif isinstance(value, str) and len(value) >= SHORTEST and is_secret_name(name.rpartition(".")[2]):
        source.report(key, f"{name} is the name of a secret; {_FIX}")
