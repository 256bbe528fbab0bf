"""Every node must run the code that the trial keys promise; differences are refused, all of them at once, before anything is queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparsefleet import __version__
from sparsefleet.errors import VersionSkew
from sparsefleet.ledger import TrialRow

_SHOWN = 12
"""Hex digits of a digest in a table."""


def check_nodes(descriptions: Sequence[dict[str, Any]], rows: Iterable[TrialRow], harness: str = "") -> None:
    """Compare the code of nodes (as ``Supervisor.hello`` describes it) with that of the trials that are still to run, or to be timed.

    Args:
        harness: digest of the code that times, where it matters.

    Raises:
        VersionSkew: what differs, on which node.
    """
    digests: dict[str, str] = {"harness": harness} if harness else {}
    names: dict[str, str] = {"harness": f"sparsefleet {__version__}"}
    for row in rows:
        digests |= row.request.get("code", {})
        names |= row.request.get("versions", {})
    promised = {what: (digest, _shown(names.get(what, ""), digest)) for what, digest in digests.items()}  # and how it is shown
    differences: dict[str, tuple[str, dict[str, str]]] = {}
    for description in descriptions:
        there = _code_there(description)
        for what, (digest, shown) in sorted(promised.items()):
            found, text = there.get(what, ("", _why_absent(what, description)))
            if found != digest:
                differences.setdefault(what, (shown, {}))[1][str(description["node"])] = text
    if differences:
        raise VersionSkew(differences)


def _code_there(description: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = {
        "core": (description["core"], _shown(f"sparsefleet {description['sparsefleet']}", description["core"])),
        "torch": (description["torch"], description["torch"]),
    }
    if "harness" in description:
        found["harness"] = (description["harness"], _shown(f"sparsefleet {description['sparsefleet']}", description["harness"]))
    for family, name, dist, version, digest, libraries in description["plugins"]:
        found[f"{family}/{name}"] = (digest, _shown(f"{dist} {version}", digest))
        found |= {f"library/{library}": (known, known) for library, known in libraries.items()}
    return found


def _why_absent(what: str, description: dict[str, Any]) -> str:
    """One line; a plugin that is installed and cannot be used is listed under its entry point's name, so all such are told."""
    if "/" not in what or what.startswith("library/"):
        return "not there"
    reasons = [f"{dist} {version} is {state}: {reason.splitlines()[0]}" for dist, version, state, reason in description["unusable"]]
    return "; ".join(["not there", *reasons])


def _shown(name: str, digest: str) -> str:
    short = digest[:_SHOWN] if len(digest) == 64 else digest
    return f"{name} ({short})" if name else short
