"""The files that a trial's pictures need, from the artifact store into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sparsefleet.report.pictures.trial import MOST_MODEL_BYTES, TrialData, read_trial
from sparsefleet.trial import files

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import TrialRow
    from sparsefleet.ledger.store import ArtifactStore

_WEIGHTS = ("weights", "histograms", "convolution")


def fetched(row: TrialRow, store: ArtifactStore, folder: Path, label: str, kinds: tuple[str, ...] = _WEIGHTS) -> TrialData:
    """The trial of the ledger's row, with its files in ``folder``; a model that is too large to be drawn is not fetched.

    Args:
        kinds: what will be drawn; without pictures of weights the model is not fetched.

    Raises:
        BackendUnreachable: the store does not answer.
        IntegrityError: a file is not the one that the record names.
    """
    record = row.record or {}
    (folder / files.SPEC).write_text(json.dumps(row.spec), encoding="utf-8")
    (folder / files.RECORD).write_text(json.dumps(record), encoding="utf-8")
    wanted = {files.MASKS, files.MANIFEST}
    for ref in record.get("artifacts", []):
        name = ref["name"]
        drawn = name == files.MODEL and ref["bytes"] <= MOST_MODEL_BYTES and any(kind in kinds for kind in _WEIGHTS)
        if drawn or name in wanted or files.parse_step_masks_name(name) is not None:
            store.get(ref["sha256"], folder / name)
    return read_trial(folder, label)
