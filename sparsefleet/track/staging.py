"""The folder of files that becomes a run's artifacts, built in one place and handed over in one call."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsefleet.errors import BackendUnreachable, IntegrityError
from sparsefleet.ledger.rows import SweepRow, TimingRow, TrialRow
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.track import names
from sparsefleet.trial import files

_SPACE = uuid.UUID("5f0c7c9e-5d2e-4b53-9a1f-3a3f6d2f4f10")
_THUMBNAIL = 256
_MOST_LOG_BYTES = 10 << 20
_SHOWN_OF_REQUEST = ("tuning", "no_rival", "dense_infeasible")
_AS_THEY_ARE = (files.SPEC, files.ENVIRONMENT, names.LOG_TXT)
_IN_MASK_FOLDER = (files.MASKS, files.MANIFEST)


def dumps(value: Any) -> str:
    """JSON for a file."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def stage_trial(row: TrialRow, store: ArtifactStore, run: Path, model: Path, when: int) -> list[str]:
    """Fill the folders ``run`` and ``model`` with the trial's files; returns the names of those that the store cannot give.

    Args:
        when: the time of the mask pictures in milliseconds; fixed, so that a repetition writes the same file names.

    Raises:
        BackendUnreachable: the store does not answer at all.
    """
    if row.record is not None:
        (run / names.RECORD_JSON).write_text(record_text(row.record), encoding="utf-8")
    (run / names.TRIAL_JSON).write_text(dumps(trial_facts(row)), encoding="utf-8")
    (run / names.SPEC_JSON).write_text(dumps(row.spec), encoding="utf-8")
    missing = []
    for ref in (row.record or {}).get("artifacts", []):
        name = ref["name"]
        picture = files.parse_picture_name(name)
        if name == files.MODEL:
            to = model / name
        elif name in _IN_MASK_FOLDER:
            to = run / names.MASK_FOLDER / name
        elif name in _AS_THEY_ARE:
            to = run / name
        elif picture:
            to = picture_path(run, row.key, *picture, when)
        else:
            continue
        try:
            store.get(ref["sha256"], to)
        except IntegrityError:
            missing.append(name)
        except BackendUnreachable as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            missing.append(name)
        else:
            if picture:
                write_thumbnail(to)
    if (model / files.MODEL).exists():
        (model / names.SPEC_JSON).write_text(dumps(row.spec), encoding="utf-8")
    return missing


def stage_logs(row: TrialRow, home: Path, run: Path) -> None:
    """Put the trial's logs into ``run``: what it printed, from the store or this home, and its structured log; those of a sensible size."""
    folder = home / "logs" / "trials"
    for name, log in ((names.LOG_TXT, folder / f"{row.key}-{row.attempt}.log"), (names.LOG_JSONL, folder / f"{row.key}.jsonl")):
        if not (run / name).exists() and log.is_file() and 0 < log.stat().st_size <= _MOST_LOG_BYTES:
            shutil.copyfile(log, run / name)


def record_text(record: Mapping[str, Any]) -> str:
    """The record as the record.json artifact holds it."""
    return dumps(record)


def trial_facts(row: TrialRow) -> dict[str, Any]:
    """What the ledger knows of a trial beside its record."""
    return {name: getattr(row, name) for name in ("state", "attempt", "node", "reason", "started", "ended", "attempts")}


def sweep_facts(sweep: SweepRow, rows: list[TrialRow]) -> dict[str, Any]:
    """The sweep and the list of its trials, those included that another sweep ran."""
    static = ("ordinal", "key", "spec_id", "arm", "twin_key", "rival_key", "depends_on", "spec")
    return {
        "schema": names.SCHEMA_VERSION,
        **{name: getattr(sweep, name) for name in ("sweep", "name", "digest", "created")},
        "trials": [{**{name: getattr(row, name) for name in static}, "request": shown_request(row)} for row in rows],
    }


def shown_request(row: TrialRow) -> dict[str, Any]:
    """What a table needs of the row's request; digests and paths of this machine stay here."""
    return {name: row.request[name] for name in _SHOWN_OF_REQUEST if name in row.request}


def timing_facts(timing: TimingRow) -> dict[str, Any]:
    """A row of timings."""
    return {name: getattr(timing, name) for name in ("config_key", "keys", "state", "timings", "samples_ref", "reason", "created")}


def picture_path(run: Path, key: str, layer: str, step: int, when: int) -> Path:
    """The file that ``MlflowClient.log_image(key=…, step=…)`` would write, with a name that a repetition writes again.

    log_image puts a fresh uuid into every name, so that a replay would add each picture once more; a test compares the two.
    """
    image_key = names.IMAGE_KEY.format(layer=re.sub(r"[^a-zA-Z0-9_\-. ]", "_", layer)).replace("/", "~")
    same = uuid.uuid5(_SPACE, f"{key}/{layer}/{step}")
    return run / names.IMAGES / f"{image_key}+step+{step}+timestamp+{when}+{same}.png"


def write_thumbnail(picture: Path) -> None:
    """The small copy beside a picture that MLflow's UI shows in its grid."""
    from PIL import Image

    with Image.open(picture) as image:
        scale = _THUMBNAIL / max(image.size)
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image.resize(size).save(picture.with_name(f"{picture.stem}+compressed.webp"))
