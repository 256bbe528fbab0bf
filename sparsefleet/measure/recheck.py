"""Does a stored timing follow from its raw samples? Computed again from nothing else, in whatever process asks. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from sparsefleet.measure.assemble import timing_of
from sparsefleet.measure.samples import Body
from sparsefleet.measure.verdict import trust


def recheck(timing: dict[str, Any], body: bytes, load: Callable[[str], bytes] | None = None) -> list[str]:
    """Every difference between the stored timing and what its raw samples say, in words; empty if there is none, to the last digit.

    Args:
        timing: as the ledger or MLflow holds it.
        body: the raw samples it names.
        load: raw samples by their sha256: with it, the other measurements that the timing names are held against it too.

    Raises:
        UserError: ``body``, or the body of another measurement, is no file of raw samples of this version, or is not there.
    """
    sha256, found = _digest(timing.get("samples_ref", "")), hashlib.sha256(body).hexdigest()
    if sha256 != found:
        return [f"samples_ref names {sha256[:12] or 'nothing'}, the samples are {found[:12]}"]
    again = timing_of(Body.from_bytes(body), timing["samples_ref"]).model_dump(mode="json")
    names = [*again, *(name for name in timing if name not in again)]
    differences = [
        f"{name} is {timing.get(name)!r}, the samples say {again.get(name)!r}" for name in names if timing.get(name) != again.get(name)
    ]
    return differences + [text for ref in timing.get("earlier", ()) if load for text in _other(again, ref, load(_digest(ref)))]


def _digest(ref: str) -> str:
    return str(ref).partition("#sha256=")[2]


def _other(timing: dict[str, Any], ref: str, body: bytes) -> list[str]:
    """What is wrong with a measurement that does not count: it is another one than was named, or it ought to be the one that counts."""
    named, found = _digest(ref), hashlib.sha256(body).hexdigest()
    if named != found:
        return [f"earlier names {named[:12]}, the samples are {found[:12]}"]
    other = timing_of(Body.from_bytes(body), ref).model_dump(mode="json")
    same = ("config_key", "op", "batch_size", "level")
    wrong = [f"earlier names {named[:12]}, whose {name} is {other[name]!r}" for name in same if other[name] != timing[name]]
    if trust(other) > trust(timing):
        wrong.append(f"earlier names {named[:12]}, which can be trusted where the one that counts cannot")
    return wrong
