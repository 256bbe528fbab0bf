"""The base of every plugin class."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Plugin(BaseModel):
    """The base of every plugin: validated, immutable hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    """Where the method is defined: arXiv id or DOI, with section or equation."""
    rule: ClassVar[str] = ""
    """The method in a formula or two, in plain text, for its page."""
    cannot: ClassVar[str] = ""
    """What it cannot do and who should not use it, beyond what the other facts say; for its page."""
