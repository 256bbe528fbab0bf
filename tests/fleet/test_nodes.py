"""A cluster of two Ray nodes, of which the second sees another folder where the driver has its home."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fleet_sweeps import Told, enter, settings

from sparsefleet.errors import UserError
from sparsefleet.fleet.driver import submit
from sparsefleet.fleet.history import read_history
from sparsefleet.fleet.logs import log_path
from sparsefleet.ledger import read_ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PRINTS = '''"""A rewirer that prints."""
import time
from sparsefleet import Rewirer, hookimpl

class Prints(Rewirer):
    """Changes nothing."""
    name = "prints"

    def on_step(self, conn, lr, rng):
        print("said on a node", flush=True)
        time.sleep(0.3)

@hookimpl
def sparsefleet_rewirers():
    return [Prints]
'''
GRID = """
name: far
train: {epochs: 1, batch_size: 128}
seeds: [0]
resources: {cpus: 1, labels: {zone: ZONE}}
axes: {density: [0.2], method: [{rewirer: prints}]}
"""
_START = "import sys; from ray.scripts.scripts import main; sys.exit(main())"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address, and the folder with the home; the far node has a file system of its own at the home's path."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not have a file system of its own")
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("nodes")
    (folder / "home" / "data").mkdir(parents=True)
    cluster = Cluster()
    cluster.add_node(num_cpus=2, include_dashboard=False, node_name="near", object_store_memory=100 << 20, labels={"zone": "a"})
    flags = f"--address {cluster.address} --num-cpus 2 --node-name far --labels zone=b --object-store-memory {100 << 20} --block"
    command = f'mount -t tmpfs none "{folder}/home" && exec {sys.executable} -c "{_START}" start {flags}'
    with (folder / "far.log").open("wb") as log:
        far = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: sum(node["Alive"] for node in cluster.global_state.node_table()) == 2, 120)
        yield str(cluster.address), folder
    finally:
        for process in [psutil.Process(far.pid), *psutil.Process(far.pid).children(recursive=True)]:
            process.kill()
        far.wait()
        cluster.shutdown()


@pytest.fixture
def cluster(nodes: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address; the home, the artifacts and a plugin are set."""
    address, folder = nodes
    (folder / "prints.py").write_text(PRINTS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("SPARSEFLEET_HOME", str(folder / "home"))
    monkeypatch.setenv("SPARSEFLEET_ARTIFACTS", (folder / "artifacts").as_uri())
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(folder / "prints.py"))
    return address


def until(holds: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.1)


def test_a_trial_runs_where_the_labels_say_and_its_words_come_home_while_it_runs(cluster: str) -> None:
    home = Path(os.environ["SPARSEFLEET_HOME"])
    sweep = enter(home, GRID.replace("ZONE", "b"))
    key = next(row.key for row in read_ledger(home).trials(sweep) if row.arm == "sparse")
    seen: list[str] = []

    def look() -> None:
        path = log_path(home, key, 1)
        until(lambda: path.exists() and "said on a node" in path.read_text(), 300)
        seen.append(read_ledger(home).trial(key).state)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    told = Told()
    row = submit(home, sweep, settings(home, address=cluster), told)
    assert (row.state, row.counts["SUCCEEDED"]) == ("DONE", 2)
    watcher.join(1.0)
    assert seen == ["RUNNING"]
    assert [(line["event"], line["node"]) for line in read_history(home, key) if line["event"] != "progress"] == [
        ("leased", "far"),
        ("started", "far"),
        ("ended", "far"),
    ]
    fleets = [event.data for event in told.events if event.kind == "fleet"]
    busy = {node["node"] for data in fleets for node in data["nodes"] if node["trials"]}
    assert busy == {"far"}

    nowhere = enter(home, GRID.replace("ZONE", "c").replace("name: far", "name: nowhere"))
    with read_ledger(home) as ledger:  # the same trials: nothing is left to run, wherever it might
        assert ledger.sweep(nowhere).counts["SUCCEEDED"] == 2


def test_a_measurement_has_a_node_to_itself_and_others_leave_it(cluster: str) -> None:
    import ray

    from sparsefleet.fleet.cluster import Cluster
    from sparsefleet.fleet.logs import home_id
    from sparsefleet.fleet.pool import Pool
    from sparsefleet.fleet.shape import Shape
    from sparsefleet.fleet.supervisor import Setup
    from sparsefleet.fleet.view import View

    home = Path(os.environ["SPARSEFLEET_HOME"])
    shape = Shape(1, 0, 0, "", (("zone", "a"),))
    with Cluster(cluster, None) as entered:
        with pytest.raises(UserError, match="no node has what a trial needs: 1 CPU, zone=c"):
            entered.require(Shape(1, 0, 0, "", (("zone", "c"),)))
        other = View(ray.get_runtime_context().gcs_address, "other")
        other.start()

        @ray.remote(num_cpus=1)
        class Trial:
            def runs(self) -> bool:
                return True

        theirs = Trial.options(label_selector={"zone": "a"}).remote()
        assert ray.get(theirs.runs.remote(), timeout=120)
        pool = Pool(entered, Setup(str(home), os.environ["SPARSEFLEET_ARTIFACTS"], "", None, None, home_id(home)), None)

        def started() -> bool:
            pool.adjust_whole(shape)
            for slot, _ in pool.greet():
                slot.ready = True
            pool.hear(0.1)
            return bool(pool.with_room(1))

        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            assert not started()  # another sweep's trial is there
        near = next(node.id for node in entered.nodes() if node.name == "near")
        assert other.claimed() == {near}  # so the other sweep sends no more
        ray.kill(theirs)
        until(started, 200)
        until(lambda: next(node.free.cpus for node in entered.nodes() if node.name == "near") == 0, 20)
        late = Trial.options(label_selector={"zone": "a"}).remote()
        assert not ray.wait([late.runs.remote()], timeout=3)[0]  # nobody's trial starts beside it
        assert other.claimed() == {near}  # nor anything else of another sweep's, which is told why
        pool.close()
        until(lambda: not other.claimed(), 20)
        assert ray.get(late.runs.remote(), timeout=120)
        other.stop()
