"""RF-12 and RF-13: MLflow is not there while a grid runs, or dies while it is written to. Every trial is one run, with the ledger's values."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.chaos.sweep import Sweep, left_behind
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import TrialRow, read_ledger
from sparsefleet.spawn import module_command
from sparsefleet.track import facts, names, server, ui
from sparsefleet.track.upload import AWAY, LOG, spawn

_HOST = "127.0.0.1"
_LIMIT_S = 600.0
_FELT_S = 60.0
_AFTER_S = 5.0
_POINT = "uploaded-before"
_METRICS = {
    "test_top1_fraction": "accuracy.test",
    "test_loss_nats": "accuracy.test_loss",
    "trained_steps": "accuracy.steps",
    "nnz_count": "counts.nnz_weights",
    "resident_bytes": "counts.resident_bytes",
    "wall_s": "wall_s",
}
_PARAMS = {"seed": "seed", "density": "density", "dataset": "dataset.name", "train.epochs": "train.epochs", "optimizer.lr": "optimizer.lr"}
"""Where a metric or a parameter of a run stands in the raw record, and in its spec."""


def away(asked: Run) -> list[Figure]:
    """What a grid costs whose MLflow is away, beside one whose MLflow is there, and what is in MLflow when it has come."""
    n, n_pairs = asked.pick(50, 6), asked.pick(3, 2)
    took: dict[str, list[dict[str, float]]] = {"there": [], "away": []}
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as name:
        folder = Path(name)
        for kind in took:
            (folder / f"server-{kind}").mkdir()
            server.connect(server.local_uri(folder / f"server-{kind}"), create=True)
        port = _port()
        process, address = ui.start(folder / "server-there")
        uris = {"there": address, "away": f"http://{_HOST}:{port}"}
        try:
            for pair in range(n_pairs):
                for kind in sorted(took, reverse=pair % 2 == 0):  # either begins: a machine that grows slower favours none
                    sweep, seconds = _grid(folder / f"{kind}-{pair}", n, uris[kind])
                    took[kind].append(seconds)
                    asked.say(f"MLflow {kind}: {', '.join(f'{what} {s:.1f} s' for what, s in seconds.items())}")
                    if kind == "away":
                        last = sweep
                    _until(lambda home=sweep.home: not left_behind(home), sweep.home)  # type: ignore[misc]  # uploads would slow the next one
        finally:
            _kill(process)
        rows, waiting = last.rows(), _waiting(last.home)
        process, address = ui.start(folder / "server-away", port)
        try:
            _upload(last.home, address)
            found = compared(address, rows)
        finally:
            _kill(process)
    pairs = list(zip(took["away"], took["there"], strict=True))
    ratios = [gone["grid"] / there["grid"] for gone, there in pairs]
    beyond = [gone["command"] - 1.05 * there["command"] for gone, there in pairs]
    after = [gone["after"] for gone, _ in pairs]
    usual = {what: median(there[what] for _, there in pairs) for what in ("grid", "command", "after")}
    asked.keep({"seconds": took, "waiting": waiting, **found})
    return [
        Figure("trials that ended without MLflow", "trials", sum(r.state == "SUCCEEDED" for r in rows), target=n, note=asked.note()),
        Figure("items that waited for MLflow", "items", waiting, target=n, note=asked.note()),
        Figure(
            "grid without MLflow over grid with it",
            "times",
            median(ratios),
            (min(ratios), max(ratios)),
            target=1.05,
            at_least=False,
            note=asked.note(f"median of {n_pairs} pairs, about {usual['grid']:.1f} s from the first lease to the last commit"),
            doubt="quick run" if asked.quick else "",
        ),
        Figure(
            "the command without MLflow, start to exit, beyond 1.05 times that with it",
            "s",
            median(beyond),
            (min(beyond), max(beyond)),
            target=2.0,
            at_least=False,
            note=asked.note(
                f"about {usual['command']:.1f} s with it, {usual['after']:.1f} s of them after the last commit, as it waits for its uploads;"
                " 2 s, for Ray's start and end differ by more than 5 % of so short a command"
            ),
            doubt="quick run" if asked.quick else "",
        ),
        Figure(
            "the command without MLflow, last commit to exit",
            "s",
            median(after),
            (min(after), max(after)),
            target=_AFTER_S,
            at_least=False,
            note=asked.note("no upload is waited for that cannot be"),
        ),
        *_figures(found, n, asked.note()),
    ]


def killed(asked: Run) -> list[Figure]:
    """What is in MLflow after its server and the uploader were each killed five times with signal 9 in the middle of the upload."""
    n, kills = asked.pick(50, 8), asked.pick(5, 2)
    dies_at = [n * (4 * i + 3) // (4 * kills) + i for i in range(kills)]  # an item at which it died comes once more
    deadly = ",".join(f"{_POINT}:{nth}" for nth in dies_at)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as name:
        folder = Path(name)
        at = folder / "server"
        at.mkdir()
        client = server.connect(server.local_uri(at), create=True)
        sweep, _ = _grid(folder / "home", n, f"http://{_HOST}:{_port()}")  # nobody listens: all of it waits
        rows, port = sweep.rows(), _port()
        process, address = ui.start(at, port)
        uploader = _Uploader(sweep, address, deadly)
        hits: list[dict[str, Any]] = []
        try:
            for wanted in [n * (4 * i + 1) // (4 * kills) for i in range(kills)]:  # between the uploader's deaths
                _until(lambda wanted=wanted: uploader.sends() and len(_runs(client)) >= wanted, sweep.home)  # type: ignore[misc]
                since = time.time()
                _kill(process)
                hits.append({"runs": len(_runs(client)), "waiting": _waiting(sweep.home), "felt": uploader.fails(since)})
                asked.say(f"killed the server: {hits[-1]}")
                process, address = ui.start(at, port)
            _until(lambda: uploader.goes_on() and _waiting(sweep.home) == 0, sweep.home)
        finally:
            uploader.stop()
            _kill(process)
        found = compared(server.local_uri(at), rows)
    asked.keep({"kills": hits, "deaths": uploader.n_deaths, **found})
    in_mid_upload = sum(hit["felt"] and hit["waiting"] > 0 for hit in hits)
    return [
        Figure("deaths of the uploader with an item in MLflow and not in its books", "deaths", uploader.n_deaths, target=kills),
        Figure("server kills in mid-upload: items wait, the uploader has sent some, and fails", "kills", in_mid_upload, target=kills),
        *_figures(found, n, asked.note(f"{kills} kills of each")),
    ]


class _Uploader:
    """An uploader that dies by its own hand where ``deadly`` says, and is started again."""

    def __init__(self, sweep: Sweep, uri: str, deadly: str) -> None:
        self._home = sweep.home
        self._environment = {**server.environment(), **sweep.environment, "MLFLOW_TRACKING_URI": uri, "SPARSEFLEET_FAULT": deadly}
        self._process = self._started()
        self.n_deaths = 0

    def goes_on(self) -> bool:
        """True; starts it again if it is dead, and raises if it ended otherwise."""
        code = self._process.poll()
        if code == -signal.SIGKILL:
            self.n_deaths += 1
            self._process = self._started()
        elif code is not None:
            raise RuntimeError(f"the uploader ended with {code}: {(self._home / LOG).read_text()[-2000:]}")
        return True

    def sends(self) -> bool:
        """Whether the process that uploads now has sent an item; see ``goes_on``."""
        return self.goes_on() and self._n_passed() > self._n_before

    def fails(self, since: float) -> bool:
        """Whether the process that uploads now found after that time that its server is away; False if it dies first, or does not in a minute."""
        away, end = self._home / AWAY, time.monotonic() + _FELT_S
        while self._process.poll() is None and time.monotonic() < end:
            if away.exists() and away.stat().st_mtime > since:
                return True
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _n_passed(self) -> int:
        path = self._home / "faults" / _POINT
        return path.stat().st_size if path.exists() else 0

    def _started(self) -> subprocess.Popen[bytes]:
        self._n_before = self._n_passed()
        command = module_command("sparsefleet.report.upload", "--home", str(self._home), "--parent-pid", str(os.getpid()))
        with (self._home / LOG).open("ab") as out:
            return subprocess.Popen(
                command, env=self._environment, cwd=self._home, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )


def compared(uri: str, rows: list[TrialRow]) -> dict[str, Any]:
    """How MLflow's runs differ from the ledger's trials: too many, too few, unfinished, and with other values."""
    client = server.connect(uri)
    runs = _runs(client)
    n_runs = Counter(run.data.tags[names.TRIAL_KEY] for run in runs)
    by_key = {run.data.tags[names.TRIAL_KEY]: run for run in runs}
    there = [row for row in rows if row.key in by_key]
    with tempfile.TemporaryDirectory() as folder:
        unlike = {row.spec_id: _unlike(client, by_key[row.key], row, Path(folder)) for row in there}
    return {
        "runs": len(runs),
        "twice": sum(n - 1 for n in n_runs.values()),
        "missing": len({row.key for row in rows} - set(n_runs)),
        "unfinished": sum(run.info.status != "FINISHED" for run in runs),
        "differing": [row.spec_id for row in there if not _equal(client, by_key[row.key], row)],
        "unlike": {spec_id: what for spec_id, what in unlike.items() if what},
    }


def _unlike(client: Any, run: Any, row: TrialRow, folder: Path) -> list[str]:
    """What of a run is not as the raw record says; with names and places of our own, not those by which the run was written."""
    record, tags, wrong = row.record or {}, run.data.tags, []
    for name, place in _METRICS.items():
        if run.data.metrics.get(name) != _at(record, place):
            wrong.append(name)
    for name, place in _PARAMS.items():
        if run.data.params.get(name) != str(_at(row.spec, place)):
            wrong.append(name)
    points = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "curve/train_loss"))
    curve = record["curves"]["train_loss"]
    if points != list(zip(curve["steps"], curve["values"], strict=True)):
        wrong.append("curve/train_loss")
    if (tags.get("sparsefleet.state"), tags.get("sparsefleet.attempt")) != (record["state"], str(record["attempt"])):
        wrong.append("state")
    stored = Path(client.download_artifacts(run.info.run_id, "record.json", str(folder))).read_bytes()
    if hashlib.sha256(stored).hexdigest() != tags.get("sparsefleet.record_sha256") or json.loads(stored) != record:
        wrong.append("record.json")
    return wrong


def _at(value: Any, place: str) -> Any:
    for name in place.split("."):
        value = value[name]
    return value


def _equal(client: Any, run: Any, row: TrialRow) -> bool:
    """Every point of every curve, and every parameter, as the uploader makes them: an upload that was cut off leaves some out."""
    wanted = sorted((p.name, p.step, p.timestamp, p.value) for p in facts.points_of(row))
    found = sorted(
        (m.key, m.step, m.timestamp, m.value) for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)
    )
    return found == wanted and run.data.params == facts.params_of(row.spec)


def _figures(found: dict[str, Any], n: int, note: str) -> list[Figure]:
    none = {"target": 0, "at_least": False, "note": note}
    return [
        Figure("trials with a run", "runs", n - found["missing"], target=n, note=note),
        Figure("runs too many", "runs", found["twice"], **none),
        Figure("runs that are not finished", "runs", found["unfinished"], **none),
        Figure("runs whose values are not the ledger's", "runs", len(found["differing"]), **none),
        Figure("runs whose figures, state or record.json are not the raw record's", "runs", len(found["unlike"]), **none),
    ]


def _grid(home: Path, n: int, uri: str) -> tuple[Sweep, dict[str, float]]:
    """A sweep of ``n`` trials, half of them dense, that has ended; its seconds.

    ``grid`` is from the first lease to the last commit, by the ledger: no start, no end and no upload is in it; ``command`` from the start of the
    process to its exit; ``after`` from the last commit to the exit.
    """
    home.mkdir()
    sweep = Sweep(home, n // 2, environment={"MLFLOW_TRACKING_URI": uri})
    begun = time.monotonic()
    code = sweep.driver().wait(_LIMIT_S)
    command_s, exited = time.monotonic() - begun, datetime.now(timezone.utc)
    if code:
        raise RuntimeError(f"the sweep ended with {code}: {sweep.log[-2000:]}")
    past = [attempt for row in sweep.rows() for attempt in row.attempts]
    first, last = (datetime.fromisoformat(when) for when in (min(a["started"] for a in past), max(a["ended"] for a in past)))
    return sweep, {"grid": (last - first).total_seconds(), "command": command_s, "after": (exited - last).total_seconds()}


def _upload(home: Path, uri: str) -> None:
    uploader = spawn(home, uri)
    try:
        _until(lambda: _waiting(home) == 0, home)
    finally:
        uploader.terminate()
        uploader.wait()


def _waiting(home: Path) -> int:
    with read_ledger(home) as ledger:
        return ledger.outbox_size()


def _runs(client: Any) -> list[Any]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`{names.KIND}` = 'trial'", max_results=1000))


def _until(true: Any, home: Path) -> None:
    end = time.monotonic() + _LIMIT_S
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"the upload does not end: {(home / 'uploader.log').read_text()[-2000:]}")
        time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The server and its workers at once, as ``kill -9`` does; a dying worker still holds the port."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def _port() -> int:
    """One that nothing listens on, below the range from which the kernel gives ports to outgoing connections."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)):
                return port
    raise OSError("no free port found")
