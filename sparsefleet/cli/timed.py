"""The trained network that ``measure`` is to time: from the ledger, or from a folder of files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.cli.labels import trial_label
from sparsefleet.cli.session import Session
from sparsefleet.trial import files

if TYPE_CHECKING:
    from sparsefleet.ledger.rows import SweepRow
    from sparsefleet.ledger.store import ArtifactStore
    from sparsefleet.measure.config import MeasureJob, TrialLike

_MASK_FILES = (files.MASKS, files.MANIFEST)


@dataclass(frozen=True)
class Loose:
    """A trial whose home is not known: its record says what it was."""

    key: str
    spec: dict[str, Any]
    record: dict[str, Any]
    twin_key: str | None = None
    rival_key: str | None = None


@dataclass(frozen=True)
class Timed:
    """A trained network and its files.

    Attributes:
        trial: whose network it is.
        partners: its twin and rival, where the ledger has them.
        row: its row of the comparison, where a sweep shows it.
    """

    trial: TrialLike
    model: Path
    masks: Path | None
    sweep: str | None = None
    partners: list[TrialLike] = field(default_factory=list)
    row: Mapping[str, Any] | None = None

    @property
    def spec_id(self) -> str:
        """What people call it."""
        return str((self.trial.record or {})["spec_id"])

    @property
    def label(self) -> str:
        """``digits mlp set csr 0.1 seed 0``."""
        return trial_label(self.trial.spec)

    def job(self, op: str, batch: int | None) -> MeasureJob:
        """What to time.

        Raises:
            UserError: nothing of the network is other than dense.
        """
        from sparsefleet.errors import UserError
        from sparsefleet.measure.config import groups

        sizes = [batch or self.trial.spec["train"]["batch_size"]]
        jobs = groups([self.trial, *self.partners], sizes, [op], also_masked=True)  # type: ignore[list-item]
        mine = next((job for job in jobs if job.representative == self.trial.key), None)
        if mine is None:
            raise UserError(
                f"{self.spec_id} is dense: nothing of it can be faster than itself",
                fix="measure a sparse trial; its dense twin is timed beside it",
            )
        return mine


def timed(session: Session, target: str, folder: Path) -> Timed:
    """The network that ``target`` names; files from the artifact store are fetched into ``folder``.

    Raises:
        UserError: no such trial or folder, or one that left no network.
        IntegrityError: a stored file is not the one that the record names.
    """
    path = Path(target)
    if path.name == files.MODEL and path.is_file():
        path = path.parent
    return _of_folder(path) if path.is_dir() else _of_ledger(session, target, folder)


def _of_ledger(session: Session, name: str, folder: Path) -> Timed:
    from sparsefleet.cli.compare import Source, table_rows
    from sparsefleet.cli.sweeps import reading
    from sparsefleet.errors import UserError
    from sparsefleet.home import artifact_root
    from sparsefleet.ledger.spool import store_of

    if "/" in name:
        raise UserError(f"there is no folder {name}")
    ledger = reading(session)
    trial = ledger.trial(name)
    record = _usable(trial.record, trial.spec_id, trial.state)
    store = store_of(artifact_root(), session.home)
    names = {ref["name"]: ref["sha256"] for ref in record["artifacts"] if ref["name"] in (files.MODEL, *_MASK_FILES)}
    if files.MODEL not in names:
        raise UserError(f"{trial.spec_id} kept no {files.MODEL}")
    for file, sha256 in names.items():
        store.get(sha256, folder / file)
    sweep = trial.attempts[-1]["sweep"] if trial.attempts else None
    if sweep:
        _use_plugins_of(ledger.sweep(sweep), store, session.made_home())
    rows = table_rows(session, sweep, Source())[0] if sweep else []
    return Timed(
        trial,
        folder / files.MODEL,
        folder if files.MASKS in names else None,
        sweep,
        [ledger.trial(key) for key in (trial.twin_key, trial.rival_key) if key],
        next((row for row in rows if trial.spec_id in row["trial_ids"]), None),
    )


def _use_plugins_of(sweep: SweepRow, store: ArtifactStore, home: Path) -> None:
    """From now on this process and its children import the plugins that were submitted with the sweep, as its trials did."""
    from sparsefleet.fleet.bundle import import_path, unpacked

    bundle = sweep.settings.get("bundle")
    if bundle:
        sys.path[:] = import_path(unpacked(bundle, store, home), sys.path).split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.environ.pop("SPARSEFLEET_PLUGINS", None)


def _of_folder(folder: Path) -> Timed:
    from sparsefleet.trial.outside import own_file, read_record, read_spec

    model = _file(folder, files.MODEL)
    record = _usable(read_record(_file(folder, files.RECORD), folder), folder.name, None)
    spec = read_spec(_file(folder, files.SPEC), folder)
    masks = next(iter(sorted(folder.rglob(files.MASKS))), None)
    for path in (model, masks, masks.parent / files.MANIFEST if masks else None):
        if path is not None:
            _check(own_file(path, folder), record)
    return Timed(Loose(str(record["trial_key"]), spec, record), model, masks.parent if masks else None)


def _usable(record: dict[str, Any] | None, name: str, state: str | None) -> dict[str, Any]:
    from sparsefleet.errors import UserError

    found = state or (record or {}).get("state")
    if not record or found != "SUCCEEDED" or not record.get("counts"):
        raise UserError(f"{name} is {found or 'not there'}", fix="only a trial that succeeded left a network to time")
    return record


def _file(folder: Path, name: str) -> Path:
    """The file of that name in the folder or below it."""
    from sparsefleet.errors import UserError

    found = folder / name if (folder / name).exists() else next(iter(sorted(folder.rglob(name))), None)
    if found is None:
        wanted = ", ".join((files.MODEL, files.SPEC, files.RECORD))
        raise UserError(f"{folder} holds no {name}", fix=f"a folder to time has {wanted} and, if sparse, {' and '.join(_MASK_FILES)}")
    return found


def _check(path: Path, record: Mapping[str, Any]) -> None:
    """Refuses a file that is not the one which the record names."""
    from sparsefleet.errors import UserError
    from sparsefleet.ledger.store import file_sha256

    named = next((ref["sha256"] for ref in record.get("artifacts", []) if ref["name"] == path.name), None)
    if named is not None and file_sha256(path) != named:
        raise UserError(f"{path} is not the file that its record names", fix="take the files of one trial")
