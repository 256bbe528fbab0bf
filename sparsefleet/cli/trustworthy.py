"""``--require-trustworthy``: what is shown is shown, and then the exit code is 6 if a figure of it may not be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

require_option = click.option(
    "--require-trustworthy", "require", is_flag=True, help="End with 6 if a timing is NOT_TRUSTWORTHY or one that was asked for is missing."
)
_TOLD = 3


def require_trustworthy(rows: Sequence[Mapping[str, Any]], sweep: str, *, measured: bool) -> None:
    """Nothing, if every timing of the table may be used.

    Args:
        measured: the sweep asked for timings, so that a sparse row without one is missing it.

    Raises:
        NotTrustworthy: how many may not, why, and the command that takes them again.
    """
    from sparsefleet.errors import NotTrustworthy
    from sparsefleet.report.trust import untimed, untrustworthy

    doubtful, without = untrustworthy(rows), untimed(rows) if measured else []
    if not doubtful and not without:
        return
    n = len({timing["config_key"] for row in rows for timing in row["timings"]})
    told = [f"{len(doubtful)} of {n} timings of {sweep} are not trustworthy"] if doubtful else []
    told += (
        [f"{len(without)} row{'s' if len(without) > 1 else ''} of {sweep} {'have' if len(without) > 1 else 'has'} no timing"]
        if without
        else []
    )
    every = [*doubtful, *without]
    listed = [*every[:_TOLD], *([f"and {len(every) - _TOLD} more"] if len(every) > _TOLD else [])]
    raise NotTrustworthy(" and ".join(told), cause="\n         ".join(listed), fix=f"sparsefleet resume {sweep} --remeasure")
