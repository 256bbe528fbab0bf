"""RF-12 and RF-13: MLflow is not there while a grid runs, or dies while it is written to. Every trial is one run, with the ledger's values."""

from __future__ import annotations

import random
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import TrialRow, read_ledger
from sparsefleet.track import facts, names, server, ui
from sparsefleet.track.upload import spawn

_HOST = "127.0.0.1"
_LIMIT_S = 600.0


def away(asked: Run) -> list[Figure]:
    """What a grid costs whose MLflow is away, beside one whose MLflow is there, and what is in MLflow when it has come."""
    n, seconds = asked.pick(50, 6), {}
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as name:
        folder = Path(name)
        for kind in ("there", "away"):
            (folder / f"server-{kind}").mkdir()
            server.connect(server.local_uri(folder / f"server-{kind}"), create=True)
        port = _port()
        process, address = ui.start(folder / "server-there")
        try:
            seconds["there"], _ = _grid(folder / "there", n, address)
        finally:
            _kill(process)
        asked.say(f"MLflow there: {seconds['there']:.1f} s")
        seconds["away"], sweep = _grid(folder / "away", n, f"http://{_HOST}:{port}")
        asked.say(f"MLflow away: {seconds['away']:.1f} s")
        rows = sweep.rows()
        waiting = _waiting(sweep.home)
        process, address = ui.start(folder / "server-away", port)
        try:
            _upload(sweep.home, address)
            found = compared(address, rows)
        finally:
            _kill(process)
    asked.keep({"seconds": seconds, "waiting": waiting, **found})
    return [
        Figure("trials that ended without MLflow", "trials", sum(r.state == "SUCCEEDED" for r in rows), target=n, note=asked.note()),
        Figure("items that waited for MLflow", "items", waiting, target=n, note=asked.note()),
        Figure(
            "grid without MLflow over grid with it",
            "times",
            seconds["away"] / seconds["there"],
            target=1.05,
            at_least=False,
            note=asked.note(f"{seconds['away']:.1f} s and {seconds['there']:.1f} s, to the end of the command"),
            doubt="quick run" if asked.quick else "",
        ),
        *_figures(found, n, asked.note()),
    ]


def killed(asked: Run) -> list[Figure]:
    """What is in MLflow after its server was killed five times with signal 9 in the middle of the upload."""
    n, kills = asked.pick(50, 8), asked.pick(5, 2)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-chaos-") as name:
        folder = Path(name)
        at = folder / "server"
        at.mkdir()
        client = server.connect(server.local_uri(at), create=True)
        _, sweep = _grid(folder / "home", n, f"http://{_HOST}:{_port()}")  # nobody listens: all of it waits
        rows, port = sweep.rows(), _port()
        process, address = ui.start(at, port)
        uploader = spawn(sweep.home, address)
        try:
            for wanted in [n * (i + 1) // (kills + 1) for i in range(kills)]:
                _until(lambda wanted=wanted: len(_runs(client)) >= wanted, sweep.home)  # type: ignore[misc]
                _kill(process)
                asked.say(f"killed the server at {len(_runs(client))} of {n} runs")
                process, address = ui.start(at, port)
            _until(lambda: _waiting(sweep.home) == 0, sweep.home)
        finally:
            uploader.terminate()
            uploader.wait()
            _kill(process)
        found = compared(server.local_uri(at), rows)
    asked.keep({"kills": kills, **found})
    return _figures(found, n, asked.note(f"{kills} kills"))


def compared(uri: str, rows: list[TrialRow]) -> dict[str, Any]:
    """How MLflow's runs differ from the ledger's trials: too many, too few, unfinished, and with other values."""
    client = server.connect(uri)
    runs = _runs(client)
    n_runs = Counter(run.data.tags[names.TRIAL_KEY] for run in runs)
    by_key = {run.data.tags[names.TRIAL_KEY]: run for run in runs}
    differing = [row.spec_id for row in rows if row.key in by_key and not _equal(client, by_key[row.key], row)]
    return {
        "runs": len(runs),
        "twice": sum(n - 1 for n in n_runs.values()),
        "missing": len({row.key for row in rows} - set(n_runs)),
        "unfinished": sum(run.info.status != "FINISHED" for run in runs),
        "differing": differing,
    }


def _equal(client: Any, run: Any, row: TrialRow) -> bool:
    """Every point of every curve, and every parameter."""
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
    ]


def _grid(home: Path, n: int, uri: str) -> tuple[float, Sweep]:
    """Seconds of the whole command of ``n`` trials, half of them dense, and the sweep."""
    home.mkdir()
    sweep = Sweep(home, n // 2, environment={"MLFLOW_TRACKING_URI": uri})
    begun = time.monotonic()
    driver = sweep.driver()
    code = driver.wait(_LIMIT_S)
    if code:
        raise RuntimeError(f"the sweep ended with {code}: {sweep.log[-2000:]}")
    return time.monotonic() - begun, sweep


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
