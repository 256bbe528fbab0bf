"""Everything that MLflow holds, as plain values that two uploads can be compared by."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsefleet.track import names


def everything(client: Any) -> dict[str, Any]:
    """By experiment: its tags, its runs by name, its models; ids of runs and models replaced."""
    state = {}
    for experiment in client.search_experiments(filter_string="name != 'Default'"):
        runs = client.search_runs([experiment.experiment_id])
        known = {run.info.run_id: run.info.run_name for run in runs}
        described = sorted((described_run(client, run, known) for run in runs), key=lambda run: str(run["name"]))
        models = [(m.name, str(m.status), known.get(m.source_run_id)) for m in client.search_logged_models([experiment.experiment_id])]
        state[experiment.name] = {"tags": experiment.tags, "runs": described, "models": sorted(models)}
    return state


def described_run(client: Any, run: Any, known: dict[str, str]) -> dict[str, Any]:
    run_id = run.info.run_id
    tags = {name: known.get(value, value) for name, value in run.data.tags.items()}
    history = {name: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, name)) for name in run.data.metrics}
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {}
        for path in listed(client, run_id):
            data = Path(client.download_artifacts(run_id, path, folder)).read_bytes()
            artifacts[path] = hashlib.sha256(data).hexdigest()
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "tags": tags,
        "params": run.data.params,
        "metrics": history,
        "artifacts": artifacts,
        "datasets": [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
        "outputs": len(run.outputs.model_outputs) if run.outputs else 0,
    }


def listed(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    for file in client.list_artifacts(run_id, folder):
        if file.is_dir:
            yield from listed(client, run_id, file.path)
        else:
            yield file.path


def trial_runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`{names.KIND}` = 'trial'", max_results=5000))
