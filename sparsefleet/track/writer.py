"""Write outbox items to MLflow so that writing one again changes nothing.

Order is what makes it safe: a run is made together with the tags that identify it, everything in it has fixed names and timestamps, and its
status becomes final last. Whoever finds a run that is still RUNNING writes it again from the start.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import SparsefleetError
from sparsefleet.ledger.rows import TERMINAL, OutboxItem, SweepRow, TrialRow
from sparsefleet.track import facts, names, staging
from sparsefleet.track.facts import Point
from sparsefleet.track.pictures import Draw, PictureWriter
from sparsefleet.track.runs import Runs
from sparsefleet.track.timing import metrics_of, tags_of_timing, withdrawn
from sparsefleet.trial.files import MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.store import ArtifactStore

_NOTE_LENGTH = 8000
_REPLACED = "the sweep compares the trial with other nets, or times it in another way, since"
_METRICS_PER_BATCH = 800  # with 100 parameters and 100 tags at most 1000 in one call
_PER_BATCH = 100


class NotYet(SparsefleetError):
    """The item needs another one that is not uploaded yet."""


class Writer:
    """Writes items of one home's ledger to one MLflow. One thread, one process per home.

    Args:
        home_id: tells this home's runs from others'.
        artifact_location: of a new experiment; None leaves it to the server.
        draw: makes pictures; None refuses the items that ask for some.
    """

    def __init__(
        self,
        client: MlflowClient,
        ledger: Ledger,
        store: ArtifactStore,
        *,
        home_id: str,
        artifact_location: str | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.client = client
        self._ledger = ledger
        self._store = store
        self._runs = Runs(client, home_id, artifact_location)
        self._pictures_of = PictureWriter(client, ledger, store, self._runs, draw) if draw is not None else None
        self._rows: dict[str, list[TrialRow]] = {}
        self._touched: set[str] = set()
        self._write: dict[str, Callable[[OutboxItem], str]] = {
            "sweep": self._sweep,
            "trial": self._trial,
            "timing": self._timing,
            "table": self._table,
            "pictures": self._pictures,
        }

    def write(self, item: OutboxItem) -> str:
        """Write one item; returns the id of its run.

        Raises:
            NotYet: another item must come first.
            MlflowException: the server refused it or is away.
        """
        self._touched.add(item.sweep)
        return self._write[item.kind](item)

    def reconcile(self) -> int:
        """Give every sweep's run the status that the ledger knows, and remove what a broken upload left twice; returns how many changed.

        A driver that was killed tells nobody, but its lock is free: the ledger then calls its sweep interrupted.
        """
        changed = 0
        for sweep in self._ledger.sweeps():
            run = self._runs.find_sweep(sweep)
            if run is None:
                continue
            moved = self._set_status(run, sweep)
            changed += moved
            if moved or sweep.sweep in self._touched:
                changed += self._runs.drop_doubles(run)
                changed += self._drop_abandoned(run, sweep)
        return changed

    def _drop_abandoned(self, parent: Run, sweep: SweepRow) -> int:
        """Delete runs that an uploader began and that nothing in the outbox will end: their trials went back into the queue since."""
        dropped = 0
        for run in self._runs.unfinished(parent):
            key = run.data.tags[names.TRIAL_KEY]
            row = next((row for row in self._rows_of(sweep.sweep) if row.key == key), None)
            if row is not None and self._ledger.trial(key).state not in TERMINAL:
                self.client.delete_run(run.info.run_id)
                dropped += 1
        return dropped

    # sweeps

    def _parent(self, sweep: SweepRow) -> Run:
        run = self._runs.find_sweep(sweep)
        if run is None:
            run = self._runs.create_sweep(sweep, start=facts.milliseconds(sweep.created))
            self._write_sweep(run, sweep)
        return run

    def _write_sweep(self, run: Run, sweep: SweepRow) -> None:
        if names.NOTE not in run.data.tags:
            note = f"Sweep `{sweep.sweep}`: {sweep.counts['total']} trials. The comparison table stands here when they are done.\n"
            self.client.set_tag(run.info.run_id, names.NOTE, note)
        with tempfile.TemporaryDirectory() as folder:
            listed = staging.sweep_facts(sweep, self._rows_of(sweep.sweep))
            (Path(folder) / names.SWEEP_JSON).write_text(staging.dumps(listed), encoding="utf-8")
            (Path(folder) / names.GRID).write_text(sweep.grid_text, encoding="utf-8")
            self.client.log_artifacts(run.info.run_id, folder)

    def _rows_of(self, sweep: str) -> list[TrialRow]:
        """The sweep's trials without their records; what a sweep consists of does not change."""
        if sweep not in self._rows:
            self._rows[sweep] = list(self._ledger.trials(sweep, with_record=False))
        return self._rows[sweep]

    def _sweep(self, item: OutboxItem) -> str:
        self._rows.pop(item.sweep, None)
        sweep = self._ledger.sweep(item.sweep)
        run = self._runs.find_sweep(sweep)
        if run is None:
            run = self._parent(sweep)
        else:
            self._write_sweep(run, sweep)
        self._set_status(run, sweep)
        return str(run.info.run_id)

    def _set_status(self, run: Run, sweep: SweepRow) -> bool:
        status, run_id = facts.sweep_status(sweep.state), run.info.run_id
        tags = {names.STATE: sweep.state, names.COUNTS: json.dumps(sweep.counts, sort_keys=True)}
        stale = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
        if stale:
            self._log(run_id, tags=stale)
        if run.info.status != status:
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status, facts.milliseconds(sweep.ended) or None)
        self._runs.forget_sweep(sweep)
        return bool(stale) or run.info.status != status

    # trials

    def _trial(self, item: OutboxItem) -> str:
        key = item.key or ""
        row = self._ledger.trial_to_report(key, item.payload.get("place") or {})
        if row.state in ("PENDING", "LEASED", "RUNNING"):
            return ""  # put back into the queue since; its next end is an item of its own
        owner = self._owner(row, item)
        parent = self._parent(owner)
        if item.sweep != owner.sweep:
            self._parent(self._ledger.sweep(item.sweep))  # lists the trial as its own too
        static = self._rows_of(owner.sweep)
        mine = next((other for other in static if other.key == key), row)
        row = _with_place(row, mine)
        run = self._runs.find_trial(key, row.attempt, self._ledger.grids_of(key))
        if run is not None and run.info.status != "RUNNING":
            return str(run.info.run_id)
        fresh = run is None
        if run is None:
            run = self._runs.create_trial(row, owner, parent.info.run_id, facts.started_of(row))
        spec_ids = {other.key: other.spec_id for other in static} | (item.payload.get("spec_ids") or {})
        self._fill(run, row, facts.tags_of(row, spec_ids, owner), fresh=fresh)
        self.client.set_terminated(run.info.run_id, facts.status_of(row.state), facts.ended_of(row))
        return str(run.info.run_id)

    def _owner(self, row: TrialRow, item: OutboxItem) -> SweepRow:
        """The sweep that ran the trial; one that was refused without an attempt belongs to whoever tells of it first."""
        return self._ledger.sweep(row.attempts[-1]["sweep"] if row.attempts else item.sweep)

    def _fill(self, run: Run, row: TrialRow, tags: dict[str, str], *, fresh: bool) -> None:
        run_id = run.info.run_id
        if row.record is not None:
            tags[names.RECORD_SHA256] = hashlib.sha256(staging.record_text(row.record).encode()).hexdigest()
            self._log_dataset(run_id, row.record)
        with tempfile.TemporaryDirectory() as folder:
            files, model = Path(folder) / "run", Path(folder) / "model"
            files.mkdir()
            model.mkdir()
            missing = staging.stage_trial(row, self._store, files, model, facts.ended_of(row))
            staging.stage_logs(row, self._ledger.home, files)
            if missing:
                tags[names.MISSING] = facts.cut(", ".join(missing), _NOTE_LENGTH)
            if (files / names.IMAGES).exists():
                tags[names.LOGGED_IMAGES] = "True"
            self.client.log_artifacts(run_id, str(files))
            model_id = self._log_model(run, row, model, fresh=fresh) if (model / MODEL).exists() else None
        self._log(run_id, points=facts.points_of(row), params=facts.params_of(row.spec), tags=tags, model_id=model_id)

    def _log_dataset(self, run_id: str, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data, accuracy = record["data"], record.get("accuracy") or {}
        used: Mapping[str, str] = next((p for p in record["plugins"] if p["family"] == "dataset"), {})
        dataset = Dataset(
            name=record["spec"]["dataset"]["name"],
            digest=hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32],  # MLflow holds 36 characters
            source_type="code",
            source=json.dumps({"tags": {"mlflow.source.name": used.get("distribution", ""), "version": used.get("version", ""), **data}}),
            profile=json.dumps({"n_test": accuracy.get("n_test")}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train and test")])])

    def _log_model(self, run: Run, row: TrialRow, folder: Path, *, fresh: bool) -> str:
        from mlflow.entities import LoggedModelOutput

        run_id, experiment_id = run.info.run_id, run.info.experiment_id
        models = [] if fresh else self.client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
        model = models[0] if models else None
        if model is None:
            name = names.MODEL_NAME.format(spec_id=row.spec_id)
            tags = {names.TRIAL_KEY: row.key, names.SPEC_ID: row.spec_id}
            model = self.client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=tags, model_type="safetensors")
        if str(model.status) != "READY":
            self.client.log_model_artifacts(model.model_id, str(folder))
            self.client.finalize_logged_model(model.model_id, "READY")
        outputs = None if fresh else self.client.get_run(run_id).outputs
        tied = [output.model_id for output in outputs.model_outputs] if outputs else []
        if model.model_id not in tied:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    # timings and the table

    def _timing(self, item: OutboxItem) -> str:
        config_key = item.payload["config_key"]
        timing = next(iter(self._ledger.timings(item.sweep, config_key, every=True)), None)
        if timing is None:
            return ""
        parent = self._parent(self._ledger.sweep(item.sweep))
        when = facts.milliseconds(item.created)
        metrics = {name: value for one in timing.timings for name, value in metrics_of(one).items()}
        tags = {name: text for one in timing.timings for name, text in tags_of_timing(one).items()}
        file_text = staging.dumps(staging.timing_facts(timing))
        digest = {names.TIMING_SHA256.format(config_key=config_key): hashlib.sha256(file_text.encode()).hexdigest()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / names.TIMING_JSON.format(config_key=config_key)
            file.parent.mkdir()
            file.write_text(file_text, encoding="utf-8")
            for key in timing.keys:
                row, run = self._run_of(key)
                if run is None or run.info.status == "RUNNING":
                    raise NotYet(f"trial {row.spec_id} of timing {config_key[:12]} is not uploaded yet")
                gone, said = withdrawn(run.data, timing)
                points = [Point(name, value, when, 0) for name, value in {**metrics, **gone}.items()]
                told = {name: facts.cut(text, _NOTE_LENGTH) for name, text in {**tags, **said, **digest}.items()}
                self.client.log_artifacts(run.info.run_id, folder)
                self._log(run.info.run_id, points=points, tags=told)
            self.client.log_artifacts(parent.info.run_id, folder)
        self._log(parent.info.run_id, tags=digest)  # before a file that is refused, it would make the former one look altered
        replaced = replace(timing, timings=[], state="REPLACED", reason=_REPLACED)
        for key in item.payload.get("former", ()):
            if run := self._run_of(key)[1]:
                gone, said = withdrawn(run.data, replaced)
                self._log(run.info.run_id, points=[Point(name, value, when, 0) for name, value in gone.items()], tags=said)
        if timing.samples_ref:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / names.SAMPLES_JSON.format(ref=timing.samples_ref)
                file.parent.mkdir()
                file.write_bytes(self._ledger.samples(timing.samples_ref))
                self.client.log_artifacts(parent.info.run_id, folder)
        return str(parent.info.run_id)

    def _run_of(self, key: str) -> tuple[TrialRow, Run | None]:
        row = self._ledger.trial_to_report(key, {})
        return row, self._runs.find_trial(key, row.attempt, self._ledger.grids_of(key))

    def _table(self, item: OutboxItem) -> str:
        sweep = self._ledger.sweep(item.sweep)
        run = self._parent(sweep)
        markdown = str(item.payload["markdown"])
        self.client.log_text(run.info.run_id, markdown, names.TABLE_MD)
        note = facts.cut_table(markdown, _NOTE_LENGTH)
        self.client.set_tag(run.info.run_id, names.NOTE, note)
        self._runs.set_experiment_note(sweep, note)
        return str(run.info.run_id)

    def _pictures(self, item: OutboxItem) -> str:
        if self._pictures_of is None:
            raise NotYet("this uploader draws no pictures", fix="python -m sparsefleet.report.upload draws them")
        sweep = self._ledger.sweep(item.sweep)
        run = self._parent(sweep)
        if not self._pictures_of.write_some(sweep, run):
            self._ledger.enqueue(item.kind, item.sweep, None, {})  # the rest, behind what has come in between
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        """Everything in as few calls as MLflow's limits allow; final test figures also under the model."""
        from mlflow.entities import Metric, Param, RunTag

        of_model = (names.ACCURACY, names.MSE, names.TEST_LOSS)
        metrics = [Metric(*point, model_id=model_id if point.name in of_model else None) for point in points]
        parameters = [Param(name, value) for name, value in (params or {}).items()]
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        n_calls = max(-(-len(metrics) // _METRICS_PER_BATCH), -(-len(parameters) // _PER_BATCH), -(-len(run_tags) // _PER_BATCH))
        for i in range(n_calls):
            few = slice(i * _PER_BATCH, (i + 1) * _PER_BATCH)
            many = slice(i * _METRICS_PER_BATCH, (i + 1) * _METRICS_PER_BATCH)
            self.client.log_batch(run_id, metrics[many], parameters[few], run_tags[few])


def _with_place(row: TrialRow, place: TrialRow) -> TrialRow:
    """``row`` as the sweep of ``place`` asks for it: arm, twin, rival and selections are facts of the sweep."""
    return replace(row, **{name: getattr(place, name) for name in ("ordinal", "arm", "twin_key", "rival_key", "depends_on", "request")})
