"""The uploader as a driver starts it, ``python -m sparsefleet.report.upload --home HOME``: that of ``sparsefleet.track.upload``, able to draw."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefleet.track.upload import main

_Picture = tuple[str, bytes]

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import TrialRow
    from sparsefleet.ledger.store import ArtifactStore


class Pictures:
    """Draws what ``sparsefleet.track.pictures`` uploads; imports torch and matplotlib with the first picture."""

    def trial(self, row: TrialRow, store: ArtifactStore, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Pictures of one finished trial."""
        from sparsefleet.report.pictures.draw import trial_pictures
        from sparsefleet.report.pictures.fetch import fetched
        from sparsefleet.track.facts import run_name

        yield from _beside_measuring(trial_pictures(fetched(row, store, folder, run_name(row))))

    def sweep(self, ledger: Ledger, sweep: str, store: ArtifactStore, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Pictures of a whole sweep."""
        from sparsefleet.report.pictures.sweep import pictures_of_sweep

        yield from _beside_measuring(pictures_of_sweep(ledger, sweep, store, folder))


def _beside_measuring(pictures: Iterator[_Picture]) -> Iterator[_Picture]:
    """The same, each drawn under the CPU's lease: the next sweep may be timed by now."""
    from sparsefleet.measure.lease import LEASE_WAIT_S, device_lease

    os.nice(19)  # the lowest there is, from now on: nobody waits for pictures
    while True:
        with device_lease("cpu", LEASE_WAIT_S):
            picture = next(pictures, None)
        if picture is None:
            return
        yield picture


if __name__ == "__main__":
    sys.exit(main(draw=Pictures()))
