"""The uploader as a driver starts it, ``python -m sparsefleet.report.upload --home HOME``: that of ``sparsefleet.track.upload``, able to draw."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefleet.track.upload import main

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

        yield from trial_pictures(fetched(row, store, folder, run_name(row)))

    def sweep(self, ledger: Ledger, sweep: str, store: ArtifactStore, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Pictures of a whole sweep."""
        from sparsefleet.report.pictures.sweep import pictures_of_sweep

        yield from pictures_of_sweep(ledger, sweep, store, folder)


if __name__ == "__main__":
    sys.exit(main(draw=Pictures()))
