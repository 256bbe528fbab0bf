"""Does a stored timing follow from its raw samples? Computed again from nothing else, in whatever process asks. Imports no torch."""

from __future__ import annotations

import hashlib
from typing import Any

from sparsefleet.measure.assemble import timing_of
from sparsefleet.measure.samples import Body


def recheck(timing: dict[str, Any], body: bytes) -> list[str]:
    """Every difference between the stored timing and what its raw samples say, in words; empty if there is none, to the last digit.

    Args:
        timing: as the ledger or MLflow holds it.
        body: the raw samples it names.

    Raises:
        UserError: ``body`` is no file of raw samples of this version.
    """
    _, _, sha256 = str(timing.get("samples_ref", "")).partition("#sha256=")
    found = hashlib.sha256(body).hexdigest()
    if sha256 != found:
        return [f"samples_ref names {sha256[:12] or 'nothing'}, the samples are {found[:12]}"]
    again = timing_of(Body.from_bytes(body), timing["samples_ref"]).model_dump(mode="json")
    names = [*again, *(name for name in timing if name not in again)]
    return [f"{name} is {timing.get(name)!r}, the samples say {again.get(name)!r}" for name in names if timing.get(name) != again.get(name)]
