"""A sweep's pictures as artifacts of its runs: drawn when nothing else is left to send, a few at a time, within bounds.

Who draws is handed in: this package stands below the one that knows how. Drawing again gives the same bytes, and a run that has its pictures is
tagged, so an uploader that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sparsefleet.errors import BackendUnreachable
from sparsefleet.ledger.rows import SweepRow, TrialRow
from sparsefleet.track import names
from sparsefleet.track.runs import Runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.store import ArtifactStore

MOST_BYTES = 2 << 20
"""Of the pictures of one run; what comes after is left out."""
MOST_TRIALS = 64
"""Of one sweep, in the grid's order; ``sparsefleet pictures`` draws the others."""
_SLICE_S = 5.0
DRAWN = ("SUCCEEDED", "DIVERGED")
"""States of the trials that get some."""

log = logging.getLogger("sparsefleet.track.upload")


class Draw(Protocol):
    """Gives name and PNG of each picture; ``folder`` is empty, for the files that it needs."""

    def trial(self, row: TrialRow, store: ArtifactStore, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Of one finished trial."""

    def sweep(self, ledger: Ledger, sweep: str, store: ArtifactStore, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Of a whole sweep."""


class PictureWriter:
    """Writes the pictures of a sweep's runs."""

    def __init__(self, client: MlflowClient, ledger: Ledger, store: ArtifactStore, runs: Runs, draw: Draw) -> None:
        self._client, self._ledger, self._store, self._runs, self._draw = client, ledger, store, runs, draw

    def write_some(self, sweep: SweepRow, parent: Run) -> bool:
        """Draws for some seconds; True if all of the sweep's runs have their pictures.

        Raises:
            BackendUnreachable: the artifact store does not answer.
        """
        end = time.monotonic() + _SLICE_S
        if not self._has_them(parent.info.run_id):
            with tempfile.TemporaryDirectory() as folder:
                self._log(parent.info.run_id, self._draw.sweep(self._ledger, sweep.sweep, self._store, Path(folder)))
        drawn = (row for row in self._ledger.trials(sweep.sweep, with_record=False) if row.state in DRAWN and _owner(row) == sweep.sweep)
        for row, _ in zip(drawn, range(MOST_TRIALS), strict=False):
            run = self._runs.find_trial(row.key, row.attempt, [sweep.name])
            if run is None or names.PICTURES in run.data.tags:
                continue
            if time.monotonic() > end:
                return False
            with tempfile.TemporaryDirectory() as folder:
                self._log(run.info.run_id, self._draw.trial(self._ledger.trial(row.key), self._store, Path(folder)))
        return True

    def _has_them(self, run_id: str) -> bool:
        return names.PICTURES in self._client.get_run(run_id).data.tags

    def _log(self, run_id: str, pictures: Iterable[tuple[str, bytes]]) -> None:
        """Writes them; a picture that cannot be drawn costs the run its pictures and nothing else."""
        with tempfile.TemporaryDirectory() as folder:
            kept, n_bytes, said = 0, 0, ""
            try:
                for name, png in pictures:
                    if n_bytes + len(png) > MOST_BYTES:
                        said = f"; the rest is over {MOST_BYTES >> 20} MiB"
                        break
                    path = Path(folder) / names.PICTURE_FOLDER / name
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(png)
                    kept, n_bytes = kept + 1, n_bytes + len(png)
            except BackendUnreachable:
                raise
            except Exception as error:  # noqa: BLE001  whatever a trial left: its pictures are an extra
                said = f"; {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
                log.warning("pictures of run %s: %s", run_id, said)
            if kept:
                self._client.log_artifacts(run_id, folder)
        self._client.set_tag(run_id, names.PICTURES, f"{kept} pictures, {n_bytes} bytes{said}")


def _owner(row: TrialRow) -> str | None:
    """The sweep that ran the trial, under which its run lies."""
    return row.attempts[-1]["sweep"] if row.attempts else None
