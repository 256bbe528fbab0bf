"""RF-20: what a sweep was submitted with is not what would run: on a node, after an edit, after an upgrade. Each is refused before any trial.

The plugin is a distribution with files of its own, installed by a real folder on the search path: what differs are its files and its metadata.
The sweep has committed trials by then, and MLflow, which was away, has none of them; they must stay and reach it, and ``--accept-new-code`` must run
anew only what depends on the plugin.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.cluster import Nodes, python_path
from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep, left_behind
from benchmarks.figures import Figure, Run
from sparsefleet.ledger import read_ledger
from sparsefleet.track import server

_REFUSED = 3
_LIMIT_S = 300.0
_NOBODY = "http://127.0.0.1:9"
"""Where nobody listens."""
_PLUGIN = '''"""A pruner whose code changes."""
from sparsefleet import Pruner, hookimpl

class Skewed(Pruner):
    """By size."""
    name = "skewed"

    def score(self, conn):
        return {score}

@hookimpl
def sparsefleet_pruners():
    return [Skewed]
'''
_METHOD = "{pruner: skewed, schedule: one-shot}"
_SUBMITTED, _EDITED, _UPGRADED = "conn.weight.abs()", "conn.weight.abs() * 1.0", "conn.weight ** 2"
_SHOWN = re.compile(r"sf-skewed (\S+) \(([0-9a-f]{12})\)")


def install(site: Path, version: str, score: str) -> None:
    """Puts the pruner into a folder as pip does, in the place of whatever version of it is there."""
    shutil.rmtree(site, ignore_errors=True)
    info = site / f"sf_skewed-{version}.dist-info"
    info.mkdir(parents=True)
    (site / "sf_skewed.py").write_text(_PLUGIN.replace("{score}", score))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sf-skewed\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[sparsefleet]\nskewed = sf_skewed\n")
    (info / "INSTALLER").write_text("pip\n")  # so it is not sent along: every node has its own


@dataclass(frozen=True)
class Refusal:
    """What a driver ended with, what it said of the plugin, and how many attempts it made."""

    code: int
    versions: tuple[str, ...]
    digests: tuple[str, ...]
    attempts: int
    said: str

    def is_right(self, *versions: str) -> bool:
        """Exit code, nothing attempted, and both versions named, with two digests that tell them apart."""
        named = self.versions == versions and len(set(self.digests)) == len(versions)
        return self.code == _REFUSED and not self.attempts and named and "Traceback" not in self.said


def refusal(sweep: Sweep, *flags: str) -> Refusal:
    """What became of ``resume``."""
    before, n_said = _n_attempts(sweep), len(sweep.log)
    code = sweep.driver(*flags).wait(_LIMIT_S)
    said = sweep.log[n_said:]
    table = [line for line in said.splitlines() if line.split()[:1] == ["pruner/skewed"]]
    told = [_SHOWN.findall(line) for line in table]
    pairs = told[0] if len(told) == 1 else []
    return Refusal(code, tuple(v for v, _ in pairs), tuple(d for _, d in pairs), _n_attempts(sweep) - before, said)


def _n_attempts(sweep: Sweep) -> int:
    return sum(len(row.attempts) for row in sweep.rows())


def _n_waiting(home: Path) -> int:
    with read_ledger(home) as ledger:
        return ledger.outbox_size()


def _records(home: Path) -> dict[str, tuple[str, int]]:
    """Of every committed record in the ledger its digest and its trial's attempts, by key; read with SQL, as no sweep shows what it has replaced."""
    asked = "SELECT key, record_sha256, (SELECT count(*) FROM attempts a WHERE a.key = t.key) FROM trials t WHERE record NOT NULL"
    with closing(sqlite3.connect(f"{(home / 'ledger.db').as_uri()}?mode=ro", uri=True)) as db:
        return {key: (digest, n) for key, digest, n in db.execute(asked)}


def figures(asked: Run) -> list[Figure]:
    """RF-20: other code on a node, edited code, an upgraded plugin: refused; then accepted."""
    n_seeds = asked.pick(8, 4)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-skew-", ignore_cleanup_errors=True) as folder:
        home, here, there = (Path(folder) / name for name in ("home", "here", "there"))
        home.mkdir()
        install(here, "1.1", _SUBMITTED)
        install(there, "1.2", _UPGRADED)
        environment = {"PYTHONPATH": python_path(here), "MLFLOW_TRACKING_URI": _NOBODY}
        sweep = Sweep(home, n_seeds, methods=_METHOD, epochs=6, more="resources: {cpus: 1}", environment=environment)
        asked.say("a node with another version")
        with closing(Nodes([here, there])) as nodes:
            node = refusal(sweep, "--address", nodes.address)
        asked.say("some trials, then the driver is killed")
        _some_trials(sweep, n_seeds + 1)
        install(here, "1.1", _EDITED)
        asked.say("its code was edited")
        edited = refusal(sweep)
        install(here, "1.2", _UPGRADED)
        asked.say("it was upgraded")
        upgraded = refusal(sweep)
        asked.say("accepted, and MLflow is there")
        sweep.environment["MLFLOW_TRACKING_URI"] = server.local_uri(home)
        accepted = _accepted(sweep)
        accepted |= _uploaded(sweep, accepted["keys"])
        wrong = violations(home, sweep.id)
    cases = {"node": node.is_right("1.1", "1.2"), "edited": edited.is_right("1.1", "1.1"), "upgraded": upgraded.is_right("1.1", "1.2")}
    told = {name: vars(case) for name, case in (("node", node), ("edited", edited), ("upgraded", upgraded))}
    asked.keep({"cases": cases, "told": told, "accepted": accepted, "violations": wrong})
    missed = ", ".join(name for name, right in cases.items() if not right)
    return [
        Figure("refused before any trial, both versions named", "cases", sum(cases.values()), target=3, note=asked.note(missed)),
        Figure("the exit code of --accept-new-code", "", accepted["exit"], target=0, most=0, note=asked.note()),
        Figure("results after it", "trials", accepted["succeeded"], target=2 * n_seeds, note=asked.note()),
        Figure("new keys: what depends on the plugin", "trials", accepted["new"], target=n_seeds, most=n_seeds, note=asked.note()),
        Figure(
            "records from before that changed or ran again", "records", accepted["changed"], target=0, at_least=False, note=asked.note()
        ),
        Figure(
            "results from before that MLflow shows", "runs", accepted["shown"], target=accepted["before"], note=asked.note(accepted["why"])
        ),
        Figure("items left in the outbox", "items", accepted["left"], target=0, at_least=False, note=asked.note()),
        Figure("violations of the contract", "rows", len(wrong), target=0, at_least=False, note=asked.note("; ".join(wrong[:3]))),
    ]


def _some_trials(sweep: Sweep, n_done: int) -> None:
    """Drives until both kinds of trials have results, and no further."""
    driver = sweep.driver("--max-parallel", "1")
    try:
        sweep.wait_for(n_done, driver, _LIMIT_S)
    finally:
        driver.kill()
        driver.wait()
    found = {row.arm for row in sweep.rows() if row.record is not None}
    if len(found) < 2 or not sweep.row().counts.get("PENDING"):
        raise RuntimeError(f"results of {sorted(found)}, {sweep.row().counts}: {sweep.log}")


def _accepted(sweep: Sweep) -> dict[str, Any]:
    """How ``resume --accept-new-code`` ended, and what became of the records that were there."""
    keys, records, waiting = {row.key for row in sweep.rows()}, _records(sweep.home), _n_waiting(sweep.home)
    code = sweep.driver("--accept-new-code").wait(_LIMIT_S)
    rows, after = sweep.rows(), _records(sweep.home)
    if waiting < len(records):
        raise RuntimeError(f"{waiting} items waited for MLflow, and there were {len(records)} results: {sweep.log}")
    return {
        "exit": code,
        "succeeded": sum(row.state == "SUCCEEDED" for row in rows),
        "new": len({row.key for row in rows} - keys),
        "before": len(records),
        "waited": waiting,
        "keys": sorted(records),
        "changed": sum(after.get(key) != record for key, record in records.items()),
        "said": sweep.log[-2000:],
    }


def _uploaded(sweep: Sweep, keys: Sequence[str]) -> dict[str, Any]:
    """What is left for MLflow when nobody uploads any more, and how many of the results with these keys it shows."""
    until = time.monotonic() + _LIMIT_S
    while left_behind(sweep.home) and time.monotonic() < until:
        time.sleep(0.2)
    client = server.connect(server.local_uri(sweep.home))
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    finished = {run.data.tags.get("sparsefleet.trial_key") for run in runs if run.info.status == "FINISHED"}
    with read_ledger(sweep.home) as ledger:
        left = [f"{item.kind} {(item.key or '')[:12]}" for item in ledger.outbox()]
    return {"left": len(left), "why": "; ".join(left[:3]), "shown": len(finished & set(keys))}
