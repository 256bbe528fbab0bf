"""Children of the fork server: contained, told apart, and gone when they should be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sparsefleet.fleet.outcome import Outcome, classify
from sparsefleet.fleet.processes import descendants
from sparsefleet.fleet.server import ForkServer, NodeServer, ServerLost

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def node() -> Iterator[NodeServer]:
    sys.path.insert(0, str(HERE))
    node = NodeServer()
    yield node
    node.close()
    sys.path.remove(str(HERE))


@pytest.fixture
def server(node: NodeServer) -> Iterator[ForkServer]:
    server = ForkServer(node.path)
    yield server
    server.close()


def run(server: ForkServer, body: str, folder: Path, **job: object) -> Outcome:
    said: dict = {}
    asked = {"body": f"fleet_bodies:{body}", "workdir": str(folder / "work"), "log": str(folder / "log"), "timeout_s": 60.0, **job}
    for kind, message in server.run(asked, 1.0):
        said[kind] = message
    return classify(said["o"], said)


@pytest.mark.parametrize(
    ("body", "end", "reason"),
    [
        ("raises", "PLUGIN_ERROR", "ValueError: no such site"),
        ("unprintable", "PLUGIN_ERROR", "Unprintable: (its text raised RuntimeError)"),
        ("interrupts", "PLUGIN_ERROR", "KeyboardInterrupt"),
        ("exit_0", "CRASHED", "exit code 0 and without a result"),
        ("exit_3", "CRASHED", "exit code 3"),
        ("os_exit", "CRASHED", "exit code 0"),
        ("segfault", "CRASHED", "SIGSEGV"),
        ("abort", "CRASHED", "SIGABRT"),
        ("kill_self", "KILLED", "SIGKILL"),
        ("close_files", "CRASHED", "without a result"),
    ],
)
def test_an_end_without_a_result_is_told_apart(server: ForkServer, tmp_path: Path, body: str, end: str, reason: str) -> None:
    outcome = run(server, body, tmp_path)
    assert (outcome.end, outcome.record) == (end, None)
    assert reason in outcome.reason
    assert run(server, "ok", tmp_path, value=7).record["value"] == 7  # the server is unharmed


def test_a_result_comes_from_a_session_of_its_own_with_its_own_log(server: ForkServer, tmp_path: Path) -> None:
    outcome = run(server, "ok", tmp_path, value=[1.5])
    assert outcome.record["value"] == [1.5]
    assert outcome.record["sid"] == outcome.record["pid"] != os.getsid(0)
    assert (tmp_path / "log").read_text() == "hello from the child\n"
    assert server.describe()["threads"] == 1  # a fork of more would lose some


@pytest.mark.parametrize("body", ["sleep", "hold_gil"])
def test_a_hang_ends_at_its_limit(server: ForkServer, tmp_path: Path, body: str) -> None:
    begun = time.monotonic()
    assert run(server, body, tmp_path, timeout_s=1.0).end == "TIMEOUT"
    assert time.monotonic() - begun < 5


def test_a_fork_bomb_is_capped(server: ForkServer, tmp_path: Path) -> None:
    outcome = run(server, "fork_bomb", tmp_path, timeout_s=20.0)
    assert outcome.end in ("CRASHED", "TIMEOUT")
    assert descendants(server.describe()["pid"]) == []
    assert run(server, "ok", tmp_path).record is not None


def test_a_daemon_that_forked_away_dies_with_the_trial(server: ForkServer, tmp_path: Path) -> None:
    assert run(server, "leave_a_daemon", tmp_path).record == {}
    assert descendants(server.describe()["pid"]) == []


def test_a_body_that_forks_answers_once(server: ForkServer, tmp_path: Path) -> None:
    outcome = run(server, "answer_twice", tmp_path)
    assert outcome.record is not None
    assert run(server, "ok", tmp_path, value=1).record["value"] == 1


def test_what_a_trial_does_to_its_process_stays_there(server: ForkServer, tmp_path: Path) -> None:
    clean = run(server, "look", tmp_path).record
    run(server, "poison", tmp_path)
    assert run(server, "look", tmp_path).record == clean == {"dtype": "torch.float32", "poison": None, "forward": True}


def test_a_memory_limit_is_a_clean_end(server: ForkServer, tmp_path: Path) -> None:
    assert run(server, "allocate", tmp_path, memory_mib=2048).record == {"n": 512 << 20}
    outcome = run(server, "allocate", tmp_path, memory_mib=128)
    assert outcome.end in ("OOM", "PLUGIN_ERROR")
    assert "memory" in outcome.reason


def test_processes_that_hold_too_much_together_are_ended(server: ForkServer, tmp_path: Path) -> None:
    outcome = run(server, "hold_memory", tmp_path, memory_mib=256, limits_address_space=False)
    assert (outcome.end, outcome.record) == ("OOM", None)
    assert "limit 256 MiB" in outcome.reason
    assert descendants(server.describe()["pid"]) == []


@pytest.mark.parametrize("then", ["return", "crash"])
def test_shared_memory_does_not_outlive_its_trial(server: ForkServer, tmp_path: Path, then: str) -> None:
    foreign, left = (Path("/dev/shm") / f"sparsefleet-test-{os.getpid()}-{name}" for name in ("foreign", "left"))
    foreign.write_bytes(b"x")
    try:
        outcome = run(server, "share_memory", tmp_path, shared=str(left), then=then)
        assert not left.exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
        left.unlink(missing_ok=True)
    assert outcome.end == ("RESULT" if then == "return" else "CRASHED")
    if then == "return":
        assert outcome.record["warnings"] == ["1 files in shared memory left behind, and removed"]


@pytest.mark.slow
def test_a_busy_work_folder_is_not_shared(server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = run(server, "ok", tmp_path)
    assert (outcome.end, outcome.record) == ("LOST", None)


HOST = """
import sys
sys.path.insert(0, sys.argv[1])
from sparsefleet.fleet.processes import descendants
from sparsefleet.fleet.server import ForkServer
server = ForkServer(sys.argv[3] or None)
job = {"body": "fleet_bodies:" + sys.argv[2], "workdir": sys.argv[4] + "/w", "log": sys.argv[4] + "/log", "timeout_s": 300.0}
for kind, message in server.run(job, 1.0):
    if kind == "s":
        print(message["pid"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("body", "own_server"), [("sleep", False), ("hold_gil", False), ("fork_bomb", False), ("hold_gil", True)])
def test_no_child_outlives_its_supervisor(node: NodeServer, tmp_path: Path, body: str, own_server: bool) -> None:
    path = "" if own_server else node.path
    host = subprocess.Popen([sys.executable, "-c", HOST, str(HERE), body, path, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = int(host.stdout.readline())
    time.sleep(0.05 if body == "fork_bomb" else 0.5)
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert gone_within(family, 1.0 if body != "fork_bomb" else 5.0)
    host.stdout.close()


def test_a_server_that_is_killed_is_told(node: NodeServer, tmp_path: Path) -> None:
    server = ForkServer(node.path)
    messages = server.run({"body": "fleet_bodies:sleep", "workdir": str(tmp_path / "w"), "log": str(tmp_path / "log")}, 1.0)
    kind, message = next(messages)
    assert kind == "s"
    child = psutil.Process(message["pid"])
    child.parent().kill()
    with pytest.raises(ServerLost):
        list(messages)
    assert gone_within([child.pid], 1.0)
    server.close()


@pytest.mark.slow
def test_without_a_node_server_one_is_started(tmp_path: Path) -> None:
    server = ForkServer(str(tmp_path / "nobody"))
    assert run(server, "ok", tmp_path, value=1).record["value"] == 1
    server.close()


def gone_within(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
