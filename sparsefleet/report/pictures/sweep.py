"""The pictures of a whole sweep, from the ledger: accuracy against sparsity, and one trial of every row of its table side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.report.compare import rows
from sparsefleet.report.labels import called
from sparsefleet.report.pictures.draw import OF_SWEEP, sweep_pictures
from sparsefleet.report.pictures.fetch import fetched

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.store import ArtifactStore

_MOST_TRIALS = 16


def pictures_of_sweep(
    ledger: Ledger, sweep: str, store: ArtifactStore, scratch: Path, kinds: tuple[str, ...] = OF_SWEEP
) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each picture of the sweep; the first seed of at most 16 rows is drawn side by side.

    Args:
        scratch: an empty folder for the trials' files.
    """
    if not any(kind in kinds for kind in OF_SWEEP):
        return
    trials = list(ledger.trials(sweep))
    by_id = {trial.spec_id: trial for trial in trials}
    table = [{**row, "spec": by_id[row["trial_ids"][0]].spec} for row in rows(trials)]
    shown = []
    for row in table[:_MOST_TRIALS]:
        trial = by_id[row["trial_ids"][0]]
        if trial.state in ("SUCCEEDED", "DIVERGED"):
            folder = scratch / trial.spec_id
            folder.mkdir()
            shown.append(fetched(trial, store, folder, label_of(row), ()))
    yield from sweep_pictures(table, shown, kinds)


def label_of(row: Mapping[str, Any]) -> str:
    """What tells a row from the others of its sweep: ``set csr 0.1``."""
    name = row["arm"] if row["arm"] not in ("sparse", "dense") else row["method"]
    parts = [name, row["variant"], called(row["layer"], row["layer_params"]) if row["arm"] != "dense" else "", f"{row['density_asked']:g}"]
    settings = [f"{path.rpartition('.')[2]}={value}" for path, value in row["setting"].items() if value is not None][:2]
    return " ".join(part for part in [*map(str, parts), *settings] if part and len(part) < 60)
