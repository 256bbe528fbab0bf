"""The sides of the throughput benchmark; each runs in a process of its own, with a local Ray of its own, and prints one line of JSON.

    python -m benchmarks.fleet.sides SIDE N_TRIALS CPUS

``ours`` and ``ours-upload``: a sweep of no-op trials through the product: real specs, the registry, a forked child per trial, artifacts, ledger;
without and with the MLflow uploader beside it. ``tune`` and ``tune-reuse``: the same trials (``sparsefleet.trial.run_trial``, nothing stored
beyond the work folder) through Ray Tune, in one worker process per trial, or in one that is reset between trials. ``tune-empty`` and
``tune-reuse-empty``: Tune with a trainable that does nothing but return one metric. All clocks run in the driving process, from the first
trial's start to the last one's end; beside it stands the time from the start of the process, imports and Ray's start included, to the first trial's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

SIDES = ("ours", "ours-upload", "tune", "tune-empty", "tune-reuse", "tune-reuse-empty")

GRID = """
name: no-op
dataset: digits
model: {{mlp: {{hidden: [16]}}}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 0, batch_size: 64}}
seeds: {seeds}
control_arms: []
axes:
  density: [0.1]
  method: [{{rewirer: static, layer: csr}}]
measure: {{level: none}}
"""


class Clock:
    """Seconds from the beginning: of the first start, of the first and of the last end."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.started: float | None = None
        self.since_process: float | None = None
        self.ends: list[float] = []

    def start(self) -> None:
        """A trial started."""
        if self.started is None:
            self.started = time.monotonic() - self.begun
            self.since_process = time.time() - psutil.Process().create_time()

    def end(self) -> None:
        """A trial ended."""
        self.ends.append(time.monotonic() - self.begun)

    def figures(self, cpus: int) -> dict[str, Any]:
        """Throughput between the first start and the last end; overhead per trial is a slot's time, of which a no-op trial has no other use."""
        assert self.started is not None
        elapsed = self.ends[-1] - self.started
        return {
            "trials": len(self.ends),
            "elapsed_s": elapsed,
            "trials_per_s": len(self.ends) / elapsed,
            "overhead_ms": 1000 * cpus * elapsed / len(self.ends),
            "first_start_s": self.started,
            "process_to_first_start_s": self.since_process,
            "whole_s": time.monotonic() - self.begun,
        }


def ours(n_trials: int, cpus: int, *, upload: bool) -> dict[str, Any]:
    """Half of the trials are sparse, the other half their dense twins."""
    from sparsefleet.fleet.driver import submit
    from sparsefleet.fleet.enqueue import enqueue
    from sparsefleet.fleet.events import DriverSettings, Event
    from sparsefleet.grid.load import load_grid
    from sparsefleet.ledger import read_ledger
    from sparsefleet.registry import catalog

    if not upload:
        sys.modules["sparsefleet.track.upload"] = None  # type: ignore[assignment]  # as where mlflow is not installed
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["SPARSEFLEET_HOME"] = folder
        grid = home / "grid.yaml"
        grid.write_text(GRID.format(seeds=n_trials // 2))
        plugins = catalog()
        clock = Clock()

        def hear(event: Event) -> None:
            if event.kind == "trial" and event.data["state"] == "RUNNING":
                clock.start()
            elif event.kind == "trial" and event.data["state"] == "SUCCEEDED":
                clock.end()

        sweep = enqueue(load_grid(str(grid), catalog=plugins), plugins, home, home / "data")
        row = submit(home, sweep, DriverSettings(data_root=home / "data", cpus=cpus), hear)
        figures = clock.figures(cpus)
        with read_ledger(home) as ledger:
            records = [trial.record for trial in ledger.trials(sweep)]
    if row.state != "DONE" or len(records) != n_trials or any(record is None or record["state"] != "SUCCEEDED" for record in records):
        raise SystemExit(f"the sweep ended {row.state}: {row.counts}")
    return {**figures, "trial_ms": 1000 * median(record["wall_s"] for record in records if record)}


def tune(n_trials: int, cpus: int, *, reuse: bool, empty: bool) -> dict[str, Any]:
    """Half of the trials are sparse, the other half their dense twins, as ours; none is anything if ``empty``."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune as ray_tune

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        requests = [] if empty else trial_requests(n_trials, Path(folder))

        def work(index: int) -> dict[str, Any]:
            """One trial in this process."""
            if empty:
                return {"loss": 0.0}
            from sparsefleet.trial.request import TrialRequest
            from sparsefleet.trial.run import run_trial

            record = run_trial(TrialRequest.model_validate(requests[index]))
            if record.state.value != "SUCCEEDED" or record.accuracy is None:
                raise RuntimeError(f"{record.state}: {record.reason}")
            return {"loss": record.accuracy.test_loss}

        class Listener(ray_tune.Callback):  # type: ignore[misc]
            """Tells the clock."""

            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                clock.start()

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                clock.end()

        class Reset(ray_tune.Trainable):  # type: ignore[misc]
            """Done at its first step; can be reset."""

            def setup(self, config: dict[str, Any]) -> None:
                self.index = config["index"]
                if not empty:
                    import sparsefleet.trial.run  # noqa: F401  once per worker, before the clock starts

            def step(self) -> dict[str, Any]:
                return {**work(self.index), "done": True}

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                self.index = new_config["index"]
                return True

            def save_checkpoint(self, checkpoint_dir: str) -> None:
                """Has no state."""

        def once(config: dict[str, Any]) -> dict[str, Any]:
            return work(config["index"])

        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        results = ray_tune.Tuner(
            ray_tune.with_resources(Reset if reuse else once, {"cpu": 1}),
            param_space={"index": ray_tune.grid_search(list(range(n_trials)))},
            tune_config=ray_tune.TuneConfig(reuse_actors=reuse),
            run_config=ray_tune.RunConfig(name="no-op", storage_path=f"{folder}/tune", callbacks=[Listener()], verbose=0),
        ).fit()
        whole_s = time.monotonic() - clock.begun
        ray.shutdown()
    if len(results) != n_trials or results.errors:
        raise SystemExit(f"Tune ended {len(results)} trials, {len(results.errors)} with an error: {results.errors[:1]}")
    return {**clock.figures(cpus), "whole_s": whole_s}


def trial_requests(n_trials: int, home: Path) -> list[dict[str, Any]]:
    """The trials of the grid, as JSON."""
    from sparsefleet.fleet.enqueue import sweep_trials
    from sparsefleet.grid.load import load_grid
    from sparsefleet.registry import catalog

    grid = home / "grid.yaml"
    grid.write_text(GRID.format(seeds=n_trials // 2))
    plugins = catalog()
    asked = ("data_root", "device", "threads", "code", "data")
    return [
        {
            "spec": trial.spec,
            "trial_key": trial.key,
            "attempt": 1,
            "workdir": str(home / "work" / trial.key),
            **{name: trial.request[name] for name in asked},
        }
        for trial in sweep_trials(load_grid(str(grid), catalog=plugins), plugins, home / "data")
    ]


def run(side: str, n_trials: int, cpus: int) -> dict[str, Any]:
    """The figures of one side."""
    if side.startswith("ours"):
        return ours(n_trials, cpus, upload=side == "ours-upload")
    return tune(n_trials, cpus, reuse="reuse" in side, empty="empty" in side)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
