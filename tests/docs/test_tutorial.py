"""The tutorial works: its blocks run line by line, in order, in an empty folder.

The lines are those of the page. What differs is the environment: the package is installed already, so the blocks marked ``install`` are left out, and
``pip install ./sf-saliency`` goes to a folder of its own instead of the environment that runs the tests.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tutorial_page import PAGE, Step, steps

from sparsefleet.grid.load import load_text
from sparsefleet.registry import Registry, catalog
from sparsefleet.testing import check


def test_every_block_is_understood():
    known = {"bash": {"", "install", "interrupted", "fails=2"}, "yaml": {""}, "python": {""}, "text": {""}}
    for step in steps():
        assert step.how in known[step.language], step
        assert step.language == "bash" or re.fullmatch(r"[\w/.-]+\.(yaml|py)", step.file), step
        assert step.how in ("", "install") or len(step.lines) == 1, step


def test_the_grids_load_and_the_pruner_conforms(plugin_distribution):
    files = {step.file: step.body for step in steps() if step.language != "bash"}
    plugin_distribution("sf-saliency", {"sf_saliency": files["sf-saliency/sf_saliency.py"]})
    found = catalog()
    for name in ("first.yaml", "second.yaml"):
        load_text(files[name], name, catalog=found)
    assert check(Registry(found).plugin_class("pruner", "saliency")()) == []


def test_the_pruner_is_short():
    """A whole third-party pruner, import to hook, in under 20 lines."""
    (module,) = (step.body for step in steps() if step.language == "python")
    code = [line for line in module.split("\n") if line.strip() and not line.startswith("#")]
    assert len(code) < 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder whose environment is a reader's: the tools on the path, no home named."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.delenv("SPARSEFLEET_HOME")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PIP_TARGET", str(site))
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads the value of the option's switch: 0 turns isolation off
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_line_by_line(folder):
    said = {}
    for step in steps():
        if step.language != "bash":
            (folder / step.file).write_text(step.body)
            continue
        for line in step.lines:
            if line.startswith("mkdir -p study && cd "):
                folder = folder / "study"
            said[line] = _run_until_it_serves(line, folder) if step.how == "interrupted" else _run(line, step, folder)
    _check(said, folder)


def _run(line: str, step: Step, folder: Path) -> str:
    expected = int(step.how.removeprefix("fails=")) if step.how.startswith("fails=") else 0
    where = folder.parent if line.startswith("mkdir -p study") else folder
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=where, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == expected, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _run_until_it_serves(line: str, folder: Path) -> str:
    """Waits for the address, fetches it, and presses Ctrl-C."""
    with subprocess.Popen(line.split(), cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(address.split("#")[0], timeout=60) as page:
                assert page.status == 200
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert time.monotonic() - begin < 30
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return address


def _check(said: dict[str, str], folder: Path) -> None:
    """What the text of the page promises about what the commands print."""
    assert re.search(r"unknown rewirer 'rigel'.*did you mean 'rigl'", said[next(line for line in said if "rigel" in line)], re.DOTALL)
    assert re.search(r"already complete: \d+ cached, 0 to run", said["sparsefleet submit grid quickstart"])
    assert (folder / "quickstart.csv").read_text().count("\n") > 10
    assert "saliency" in said[next(line for line in said if line.startswith("sparsefleet run second.yaml"))]
    assert "power" in said["sparsefleet plugins show saliency"]
    assert re.search(r"[1-9]\d* passed", said["pytest -q sf-saliency"])
    assert re.search(r"cached +[1-9]", said["sparsefleet plan second.yaml"])
    rows = json.loads(_run("sparsefleet compare second --json", Step("bash", "", ""), folder))["rows"]
    assert {row["method"] for row in rows} >= {"magnitude+cubic", "saliency+cubic", "rigl", "static", "dense"}
    assert all(row["n_failed"] == 0 and row["n_ok"] + row["n_diverged"] == row["trials"] for row in rows)
    planned = next(line for line in PAGE.read_text().split("\n") if line.startswith("grid quickstart:"))
    assert planned in said["sparsefleet plan quickstart"]
