from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_home import environment, fill, run_program

GRID = """\
name: tiny
dataset: digits
model: {mlp: {hidden: [16]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1, batch_size: 64, max_steps: 3}
seeds: 2
measure: {level: none}
control_arms: []
axes:
  density: [0.2]
  layer: [csr]
  method: [{rewirer: set}, {pruner: magnitude, schedule: {one-shot: {}}, start: twin}]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(GRID)
    return path


def test_a_bug_is_one_sentence_and_a_traceback_in_a_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True)
    code = (
        "import sys; from sparsefleet.cli import status; from sparsefleet.cli.app import cli;"
        "status.reading = lambda session: 1 / 0; cli(['status', *sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(home))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ZeroDivisionError" in done.stderr
    (log,) = (home / "logs").glob("bug-*.log")
    assert str(log) in done.stderr
    assert "Traceback" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    shown = subprocess.run([sys.executable, "-c", code, "--debug"], capture_output=True, text=True, env=environment(home))
    assert (shown.returncode, "Traceback" in shown.stderr) == (1, True)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path / "home", seeds=200)
    command = f"{sys.executable} -m sparsefleet.cli status --trials --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment(tmp_path / "home"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_a_reader_that_was_never_there_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path / "home", seeds=200)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sparsefleet.cli", "status", "--trials", "--json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(tmp_path / "home"))
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_ray_that_does_not_end_leaves_the_exit_code_alone(tmp_path: Path) -> None:
    """Python's own end, here one that fails, is not reached while Ray's shutdown is stuck."""
    stuck = "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='ray-shutdown').start()"
    code = f"import atexit, os, threading, time; from sparsefleet.cli import main; atexit.register(os._exit, 11); {stuck}; main()"
    done = subprocess.run([sys.executable, "-c", code, "status"], env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, "there is no ledger" in done.stderr) == (2, True)


def test_plan_is_data_on_stdout_and_talk_on_stderr(tmp_path: Path, grid: Path) -> None:
    done = run_program("plan", str(grid), home=tmp_path / "home")
    assert done.returncode == 0
    assert done.stdout.startswith("grid tiny:")
    assert done.stderr == f"next: sparsefleet submit grid {grid}\n"
    body = json.loads(run_program("plan", str(grid), "--json", "--only", "set", home=tmp_path / "home").stdout)
    assert (body["schema"], body["trials"], body["only"]) == (1, 6, 2)
    assert not (tmp_path / "home").exists()


def test_too_many_trials_are_refused(tmp_path: Path, grid: Path) -> None:
    done = run_program("submit", "grid", str(grid), "--max-trials", "2", home=tmp_path / "home")
    assert done.returncode == 2
    assert "--max-trials" in done.stderr


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, grid: Path) -> None:
    done = run_program("submit", "grid", str(grid), "--name", "../x", "--dry-run", home=tmp_path / "home")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_run_needs_one_trial_and_runs_it_without_ray(tmp_path: Path, grid: Path) -> None:
    home = tmp_path / "home"
    several = run_program("run", str(grid), home=home)
    assert several.returncode == 2
    assert "--point 0" in several.stderr
    done = run_program("run", str(grid), "--only", "magnitude*,seed=1", "--json", home=home)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["schema"] == 1
    assert body["record"]["state"] == "SUCCEEDED"
    spec = Path(body["folder"]) / "spec.json"
    alone = run_program("run", str(spec), home=home)
    assert alone.returncode == 2  # it starts from its twin
    assert "starts from" in alone.stderr
    by_index = run_program("run", str(grid), "--point", "0", home=home)
    assert by_index.returncode == 0
    assert "SUCCEEDED" in by_index.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_submit_compare_and_submit_again(tmp_path: Path, grid: Path) -> None:
    home = tmp_path / "home"
    done = run_program("submit", "grid", str(grid), home=home)
    assert done.returncode == 0, done.stderr
    assert "acc (mean" in done.stdout
    assert "2 seeds, and a claim needs 5" in done.stdout
    assert "break-even: not bracketed" in done.stdout
    assert "6/6 done" in done.stderr
    assert done.stderr.splitlines()[-1] == "next: sparsefleet ui"
    assert "\x1b" not in done.stdout + done.stderr
    start = time.monotonic()
    again = run_program("submit", "grid", str(grid), "--json", home=home)
    assert time.monotonic() - start < 5  # the target is 2 s on a quiet machine
    assert "already complete: 6 cached, 0 to run" in again.stderr
    body = json.loads(again.stdout)
    assert (body["schema"], body["state"], len(body["rows"])) == (1, "DONE", 3)
    tracked = run_program("compare", "--from", "mlflow", home=home)
    assert tracked.stdout == run_program("compare", home=home).stdout


@pytest.mark.ray
@pytest.mark.slow
def test_detach_then_watch(tmp_path: Path, grid: Path) -> None:
    home = tmp_path / "home"
    done = run_program("submit", "grid", str(grid), "--detach", "--only", "set", home=home)
    assert done.returncode == 0, done.stderr
    assert "next: sparsefleet watch tiny-" in done.stderr
    watched = run_program("watch", "--every", "0.2", home=home)
    assert watched.returncode == 0, watched.stderr
    assert "4/4 done" in watched.stderr


def _wait_for(process: subprocess.Popen[str], word: str, fd: int) -> str:
    text, end = "", time.monotonic() + 30
    while word not in text and time.monotonic() < end:
        text += os.read(fd, 4096).decode(errors="replace")
    return text


def _read_to_the_end(process: subprocess.Popen[str], fd: int) -> str:
    """All that the process still says; it cannot close a terminal that nobody reads."""
    text, end = "", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                text += os.read(fd, 4096).decode(errors="replace")
            except OSError:  # its end of the terminal is closed
                break
    process.wait(20)
    while select.select([fd], [], [], 0)[0]:
        try:
            text += os.read(fd, 4096).decode(errors="replace")
        except OSError:
            break
    return text


def test_ctrl_c_in_watch_detaches_and_says_so(tmp_path: Path) -> None:
    from sparsefleet.ledger import SweepLock, open_ledger

    home = tmp_path / "home"
    sweep = fill(home)
    with open_ledger(home) as ledger, SweepLock(home, sweep):
        ledger.set_sweep_state(sweep, "RUNNING")
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "sparsefleet.cli", "watch"]
        process = subprocess.Popen(
            command, stderr=slave, stdout=subprocess.PIPE, text=True, env=environment(home, TERM="xterm", NO_COLOR="1")
        )
        os.close(slave)
        seen = _wait_for(process, "0/4 done", master)
        process.send_signal(signal.SIGINT)
        seen += _read_to_the_end(process, master)
        assert process.returncode == 130
        os.close(master)
    assert f"{sweep} goes on" in seen
    assert "\x1b[3" not in seen  # no colour
