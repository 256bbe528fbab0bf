"""Every node must run the code that the trial keys promise; a difference is refused before anything is queued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparsefleet.errors import PluginError
from sparsefleet.ledger import TrialRow


def check_node(description: dict[str, Any], rows: Iterable[TrialRow]) -> None:
    """Compare a node's code with the one of the trials that are still to run.

    Raises:
        PluginError: names the node, and each version and digest that differs.
    """
    plugins = {f"{family}/{name}": (dist, version, digest) for family, name, dist, version, digest in description["plugins"]}
    problems: dict[str, str] = {}
    for row in rows:
        for what, digest in row.request.get("code", {}).items():
            if what in problems:
                continue
            if what == "core":
                found, shown = description["core"], f"sparsefleet {description['sparsefleet']}"
            elif what == "torch":
                found, shown = description["torch"], "torch"
            elif what in plugins:
                dist, version, found = plugins[what]
                shown = f"{dist} {version}, {what}"
            else:
                problems[what] = f"{what} is not installed or broken"
                continue
            if found != digest:
                problems[what] = f"{shown}: {found[:12]}, the sweep was submitted with {digest[:12]}"
    if problems:
        raise PluginError(
            f"node {description['node']} runs other code than the sweep was submitted with",
            cause="; ".join(problems[what] for what in sorted(problems)),
            fix="submit the grid again: only what depends on the changed code gets new trials; or install the former version",
        )
