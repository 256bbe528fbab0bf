"""Find and make this home's experiments and runs: one experiment per grid, one run per sweep, one per trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sparsefleet.errors import UserError
from sparsefleet.ledger.rows import SweepRow, TrialRow
from sparsefleet.ledger.store import is_web, refuse_web
from sparsefleet.track import facts, names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000


def tagged(**tags: str) -> str:
    """A filter for runs by the tags named in ``names``, e.g. ``tagged(KIND="trial")``."""
    return " AND ".join(f"tags.`{getattr(names, name)}` = '{_quoted(value)}'" for name, value in tags.items())


def _quoted(value: str) -> str:
    if "'" in value or "\\" in value:
        raise UserError(f"{value!r} cannot be the id of a sweep or a trial")
    return value


def every_run(client: MlflowClient, experiment_ids: list[str], filter_string: str) -> Iterator[Run]:
    """All matching runs that are not deleted, page by page."""
    token = None
    while True:
        page = client.search_runs(experiment_ids, filter_string, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


class Runs:
    """The runs of one home."""

    def __init__(self, client: MlflowClient, home_id: str, artifact_location: str | None) -> None:
        self._client = client
        self._home = home_id
        self._artifact_location = artifact_location
        self._experiments: dict[str, str] = {}
        self._parents: dict[str, Run] = {}

    def experiment(self, name: str, *, create: bool) -> str | None:
        """The id of the experiment of this name."""
        from mlflow.exceptions import MlflowException

        if name in self._experiments:
            return self._experiments[name]
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            if not create:
                return None
            raise UserError(
                f"experiment {name!r} is deleted in MLflow", fix=f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        if found is None and not create:
            return None
        if found is None:
            try:
                where = f"{self._artifact_location}/{name}" if self._artifact_location else None
                self._experiments[name] = self._client.create_experiment(
                    name, artifact_location=where, tags={names.NOTE_SWEEP: "", names.EXPERIMENT_KIND: "custom_model_development"}
                )
                return self._experiments[name]
            except MlflowException as error:
                found = self._client.get_experiment_by_name(name)  # another home was faster
                if found is None:
                    raise error
        if not create and is_web(str(found.artifact_location)):
            return None
        refuse_web(str(found.artifact_location))
        self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def find_sweep(self, sweep: SweepRow) -> Run | None:
        """The sweep's run, or None."""
        if sweep.sweep not in self._parents:
            experiment_id = self.experiment(sweep.name, create=False)
            if experiment_id is None:
                return None
            mine = tagged(KIND="sweep", SWEEP=sweep.sweep, HOME=self._home)
            kept = self._first(list(every_run(self._client, [experiment_id], mine)))
            if kept is None:
                return None
            self._parents[sweep.sweep] = kept
        return self._parents[sweep.sweep]

    def create_sweep(self, sweep: SweepRow, *, start: int) -> Run:
        """A run for the sweep, with the tags that identify it."""
        experiment_id = self.experiment(sweep.name, create=True)
        tags = {names.KIND: "sweep", names.HOME: self._home, names.SWEEP: sweep.sweep, names.DIGEST: sweep.digest}
        run = self._client.create_run(str(experiment_id), start, {**tags, names.SCHEMA: names.SCHEMA_VERSION}, sweep.sweep)
        self._parents[sweep.sweep] = run
        return run

    def forget_sweep(self, sweep: SweepRow) -> None:
        """Read the sweep's run anew next time."""
        self._parents.pop(sweep.sweep, None)

    def find_trial(self, key: str, attempt: int, experiments: Iterable[str]) -> Run | None:
        """The trial's run, whichever sweep ran it; runs of earlier attempts are deleted.

        Args:
            experiments: names of those of all sweeps that show or ran the trial.
        """
        ids = [found for name in experiments if (found := self.experiment(name, create=False)) is not None]
        if not ids:
            return None
        runs = list(every_run(self._client, ids, tagged(KIND="trial", TRIAL_KEY=key, HOME=self._home)))
        current = [run for run in runs if run.data.tags.get(names.ATTEMPT) == str(attempt)]
        for run in runs:
            if run not in current:
                self._client.delete_run(run.info.run_id)
        return self._first(current)

    def create_trial(self, row: TrialRow, owner: SweepRow, parent_id: str, start: int) -> Run:
        """A run for the trial, with the tags that identify it."""
        tags = {
            names.KIND: "trial",
            names.HOME: self._home,
            names.PARENT: parent_id,
            names.SWEEP: owner.sweep,
            names.TRIAL_KEY: row.key,
            names.SPEC_ID: row.spec_id,
            names.ATTEMPT: str(row.attempt),
            names.SCHEMA: names.SCHEMA_VERSION,
        }
        return self._client.create_run(str(self.experiment(owner.name, create=True)), start, tags, facts.run_name(row))

    def drop_doubles(self, parent: Run) -> int:
        """Delete runs of one trial beyond the first: a request that the server answered after its sender had died; returns how many."""
        seen: set[tuple[str | None, str | None]] = set()
        dropped = 0
        children = every_run(self._client, [parent.info.experiment_id], tagged(KIND="trial", PARENT=parent.info.run_id))
        for run in sorted(children, key=_best_first):
            identity = (run.data.tags.get(names.TRIAL_KEY), run.data.tags.get(names.ATTEMPT))
            if identity in seen:
                self._client.delete_run(run.info.run_id)
                dropped += 1
            seen.add(identity)
        return dropped

    def unfinished(self, parent: Run) -> list[Run]:
        """Runs of trials below ``parent`` that are RUNNING."""
        wanted = f"{tagged(KIND='trial', PARENT=parent.info.run_id, HOME=self._home)} AND attributes.status = 'RUNNING'"
        return list(every_run(self._client, [parent.info.experiment_id], wanted))

    def set_experiment_note(self, sweep: SweepRow, note: str) -> None:
        """Show the table on the experiment, unless the experiment is someone else's."""
        experiment = self._client.get_experiment(str(self.experiment(sweep.name, create=True)))
        if names.NOTE_SWEEP in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, names.NOTE, note)
            self._client.set_experiment_tag(experiment.experiment_id, names.NOTE_SWEEP, sweep.sweep)

    def _first(self, runs: list[Run]) -> Run | None:
        """The run to keep of several that mean the same; the others are deleted."""
        ranked = sorted(runs, key=_best_first)
        for double in ranked[1:]:
            self._client.delete_run(double.info.run_id)
        return ranked[0] if ranked else None


def _best_first(run: Run) -> tuple[bool, str]:
    return run.info.status == "RUNNING", str(run.info.run_id)
