"""A sweep's rows from MLflow alone, in the ledger's dataclasses: what ``compare --from mlflow`` reads."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.ledger.rows import TimingRow, TrialRow
from sparsefleet.ledger.store import is_web, refuse_web
from sparsefleet.track import names, server
from sparsefleet.track.runs import every_run, tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_READERS = 8
_UPLOAD_AGAIN = "delete the sweep's runs in MLflow, then sparsefleet resume SWEEP --upload-again"


def rows(sweep: str, uri: str, home_id: str | None = None) -> tuple[list[TrialRow], list[TimingRow]]:
    """The trials and timings of a sweep.

    Args:
        sweep: its id, or the beginning of it.
        uri: of MLflow.
        home_id: whose sweep, where several homes wrote one of this id to the server.

    Raises:
        UserError: there is no such sweep, or more than one.
        IntegrityError: a record is not the one that was uploaded.
        BackendUnreachable: MLflow does not answer.
    """
    client = server.connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        parent = find_sweep(client, sweep, home_id)
        with tempfile.TemporaryDirectory() as folder:
            return _trials(client, parent, Path(folder)), _timings(client, parent, Path(folder))
    except (MlflowException, OSError) as error:
        raise server.unreachable(uri, error) from error
    except (LookupError, TypeError, AttributeError) as error:  # JSON, but of another shape
        raise IntegrityError(
            f"what MLflow holds of sweep {sweep} is not what was uploaded", cause=repr(error), fix=_UPLOAD_AGAIN
        ) from error


def raw_samples(sweep: str, uri: str, ref: str, home_id: str | None = None) -> bytes:
    """The raw samples of one of the sweep's timings, by their sha256.

    Raises:
        UserError: there is no such sweep.
        IntegrityError: they are not what was uploaded.
        BackendUnreachable: MLflow does not answer, or has none of this name.
    """
    client = server.connect(uri)
    from mlflow.exceptions import MlflowException

    name = names.SAMPLES_JSON.format(ref=ref)
    try:
        run_id = find_sweep(client, sweep, home_id).info.run_id
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run_id, name, folder)).read_bytes()
    except (MlflowException, OSError) as error:
        raise server.unreachable(uri, error) from error
    if hashlib.sha256(data).hexdigest() != ref:
        raise IntegrityError(f"{name} of run {run_id} does not match its digest", fix=_UPLOAD_AGAIN)
    return data


def find_sweep(client: MlflowClient, sweep: str, home_id: str | None = None) -> Run:
    """The run of the sweep with this id, or of the only one whose id begins so.

    Raises:
        UserError: there is none or more than one; the message lists candidates.
    """
    wanted = tagged(KIND="sweep") if home_id is None else tagged(KIND="sweep", HOME=home_id)
    known = list(every_run(client, _experiments(client), wanted))
    ids = sorted({run.data.tags[names.SWEEP] for run in known})
    matching = [run for run in known if run.data.tags[names.SWEEP].startswith(sweep)]
    found = [run for run in matching if run.data.tags[names.SWEEP] == sweep] or matching
    if len(found) == 1:
        refuse_web(str(found[0].info.artifact_uri))
        return found[0]
    if not found:
        raise UserError(f"unknown sweep {sweep!r} in MLflow", fix=f"sweeps there: {', '.join(ids[:8]) or 'none yet'}")
    homes = sorted({f"{run.data.tags[names.SWEEP]} of home {run.data.tags[names.HOME]}" for run in found})
    raise UserError(f"{len(found)} sweeps in MLflow begin with {sweep!r}", fix="; ".join(homes))


def _experiments(client: MlflowClient) -> list[str]:
    ids, token = [], None
    while True:
        page = client.search_experiments(page_token=token)
        ids += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            return ids


def _trials(client: MlflowClient, parent: Run, folder: Path) -> list[TrialRow]:
    listed = _json(client, parent.info.run_id, names.SWEEP_JSON, folder)["trials"]
    home, sweep_state = parent.data.tags[names.HOME], parent.data.tags.get(names.STATE)
    by_key = _runs(client, parent.info.experiment_id, home, {trial["key"] for trial in listed})

    def read(trial: Mapping[str, Any]) -> TrialRow:
        run = by_key.get(trial["key"])
        if run is None or run.info.status == "RUNNING":  # not uploaded, or not to the end
            return TrialRow(**trial, state="CANCELLED" if sweep_state == "CANCELLED" else "PENDING")
        known = _json(client, run.info.run_id, names.TRIAL_JSON, folder / run.info.run_id)
        return TrialRow(**trial, **known, record=_record(client, run, folder / run.info.run_id))

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, listed))


def _runs(client: MlflowClient, here: str, home: str, keys: set[str]) -> dict[str, Run]:
    """The run of each trial's newest attempt, by key; a sweep of another grid may have made it."""
    wanted = tagged(KIND="trial", HOME=home)
    by_key: dict[str, Run] = {}
    _take_newest(by_key, every_run(client, [here], wanted))
    elsewhere = [experiment_id for experiment_id in _experiments(client) if experiment_id != here]
    if elsewhere:
        if all(key in by_key and _attempt(by_key[key]) for key in keys):  # only an attempt after the first can be a newer one
            wanted += f" AND tags.`{names.ATTEMPT}` != '1'"
        _take_newest(by_key, (run for run in every_run(client, elsewhere, wanted) if not is_web(str(run.info.artifact_uri))))
    return by_key


def _take_newest(by_key: dict[str, Run], runs: Iterable[Run]) -> None:
    for run in runs:
        key = run.data.tags[names.TRIAL_KEY]
        if key not in by_key or _attempt(run) > _attempt(by_key[key]):
            by_key[key] = run


def _attempt(run: Run) -> int:
    """Of a run without a readable number 0."""
    text = run.data.tags.get(names.ATTEMPT, "")
    return int(text) if text.isdecimal() else 0


def _record(client: MlflowClient, run: Run, folder: Path) -> dict[str, Any] | None:
    digest = run.data.tags.get(names.RECORD_SHA256)
    if digest is None:
        return None
    record: dict[str, Any] = _json(client, run.info.run_id, names.RECORD_JSON, folder, digest)
    return record


def _timings(client: MlflowClient, parent: Run, folder: Path) -> list[TimingRow]:
    run_id, tags = parent.info.run_id, parent.data.tags
    rows = []
    for file in client.list_artifacts(run_id, str(Path(names.TIMING_JSON).parent)):
        digest = tags.get(names.TIMING_SHA256.format(config_key=Path(file.path).stem))
        rows.append(TimingRow(**_json(client, run_id, file.path, folder, digest)))
    return sorted((row for row in rows if row.keys), key=lambda row: (row.created, row.config_key))


def _json(client: MlflowClient, run_id: str, name: str, folder: Path, digest: str | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    data = Path(client.download_artifacts(run_id, name, str(folder))).read_bytes()
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityError(f"{name} of run {run_id} does not match its digest", fix=_UPLOAD_AGAIN)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} of run {run_id} is no JSON", cause=str(error)[:200], fix=_UPLOAD_AGAIN) from error
