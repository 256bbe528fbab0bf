from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as command, harness
from benchmarks.figures import Figure
from benchmarks.harness import Found, Part, merge, run_part

PARTS = """
from benchmarks.figures import Figure, NotRun

def good(run):
    run.say("working")
    run.keep({"cells": [1, 2]})
    print("a stray line on stdout")
    return [Figure("speed", "times", 2.0, target=1.0), Figure("size", "MiB", 3.0)]

def missed(run):
    return [Figure("false verdicts", "cells", 4.0 if run.quick else 1.0, target=0, at_least=False)]

def not_here(run):
    raise NotRun("torch-sparse is not installed")

def no_library(run):
    import nowhere_to_be_found

def no_product(run):
    import sparsefleet.nowhere

def killed(run):
    import os
    os.kill(os.getpid(), 9)

def twice(run):
    return [Figure("speed", "times", target=1.0, note="no memory"), Figure("size", "MiB", 5.0)]
"""


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench_parts.py").write_text(PARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def part(name: str, title: str = "some figures") -> Part:
    return Part(name.upper(), title, f"bench_parts:{name}")


def row(value: float | None, *, part: str = "A", what: str = "speed", quick: bool = False, date: str = "old") -> dict[str, Any]:
    return {"id": part, "what": what, "value": value, "quick": quick, "date": date}


# Figures


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure("a", "s"), "not run"),
        (Figure("a", "s", target=1.0), "not run"),
        (Figure("a", "s", 1.0), "told"),
        (Figure("a", "s", 1.0, target=1.0), "kept"),
        (Figure("a", "s", 0.9, target=1.0), "MISSED"),
        (Figure("a", "s", 0.9, target=1.0, at_least=False), "kept"),
        (Figure("a", "s", 1.1, target=1.0, at_least=False), "MISSED"),
        (Figure("a", "%", 95, target=90, most=99), "kept"),
        (Figure("a", "%", 100, target=90, most=99), "MISSED"),
        (Figure("a", "", broken=True), "BROKEN"),
        (Figure("a", "s", 1.0, target=1.0, doubt="not trustworthy: noise"), "UNPROVEN"),
        (Figure("a", "s", 0.9, target=1.0, doubt="quick run"), "UNPROVEN"),
        (Figure("a", "s", 0.9, doubt="quick run"), "told"),
        (Figure("a", "s", target=1.0, doubt="quick run"), "not run"),
    ],
)
def test_not_run_is_neither_kept_nor_missed(figure: Figure, word: str) -> None:
    assert figure.word == word
    assert word == "told" or word in figure.line()
    assert figure.value is None or figure.doubt in figure.line()
    assert figure.kept is {"kept": True, "MISSED": False}.get(word)


# Parts


def test_a_part_runs_in_a_process_of_its_own() -> None:
    found = run_part(part("good"), quick=False)
    assert [(figure.what, figure.value) for figure in found.figures] == [("speed", 2.0), ("size", 3.0)]
    assert found.raw == {"cells": [1, 2]}
    assert 0 < found.seconds < 30


def test_a_quick_part_keeps_and_misses_nothing() -> None:
    found = run_part(part("missed"), quick=True)
    assert [(figure.word, figure.doubt) for figure in found.figures] == [("UNPROVEN", "quick run")]
    (stored,) = found.rows(part("missed"), {"quick": True})
    assert (stored["value"], stored["kept"], stored["doubt"]) == (4.0, None, "quick run")


@pytest.mark.parametrize(
    ("name", "word", "why"),
    [
        ("not_here", "not run", "torch-sparse is not installed"),
        ("no_library", "not run", "nowhere_to_be_found is not here"),
        ("no_product", "BROKEN", "ended with 1"),
        ("killed", "BROKEN", "ended with -9"),
        ("undefined", "BROKEN", "ended with 1"),
    ],
)
def test_what_cannot_run_says_why_and_what_breaks_is_no_excuse(name: str, word: str, why: str) -> None:
    (figure,) = run_part(part(name), quick=False).figures
    assert (figure.word, figure.value) == (word, None)
    assert why in figure.note


def test_a_module_that_is_not_written_yet_is_not_run() -> None:
    (figure,) = run_part(Part("X", "title", "benchmarks.trust.nowhere:figures"), quick=False).figures
    assert (figure.word, figure.note) == ("not run", "benchmarks.trust.nowhere is not here")


# Merging


def test_a_new_value_takes_the_older_ones_place() -> None:
    assert merge([row(1.0)], [row(2.0, date="new")]) == [row(2.0, date="new")]


@pytest.mark.parametrize("new", [None, row(None, date="new"), row(2.0, quick=True, date="new"), row(2.0, what="another", date="new")])
def test_a_figure_that_was_not_run_keeps_its_value_and_its_date(new: dict[str, Any] | None) -> None:
    merged = merge([row(1.0)], [new] if new else [])
    assert row(1.0) in merged
    assert len(merged) == 1 + (new is not None and new["what"] == "another")


def test_a_quick_figure_gives_way_to_any_value() -> None:
    assert merge([row(1.0, quick=True)], [row(2.0, quick=True, date="new")])[0]["value"] == 2.0
    assert merge([row(1.0, quick=True)], [row(2.0, date="new")])[0]["value"] == 2.0


def test_a_row_without_a_value_leaves_when_its_part_ran_again() -> None:
    older = [row(None, what="title"), row(None, part="B")]
    assert merge(older, [row(2.0, date="new")]) == [row(2.0, date="new"), row(None, part="B")]


def test_rows_say_where_they_come_from() -> None:
    found = Found([Figure("a", "s", 1.0, target=2.0)], seconds=1.23)
    (stored,) = found.rows(part("good"), {"date": "now", "machine": "fp:1", "commit": None, "quick": False})
    names = {"id", "what", "value", "unit", "spread", "target", "kept", "seconds", "date", "note", "machine"}
    assert names <= stored.keys()
    assert (stored["id"], stored["kept"], stored["seconds"]) == ("GOOD", False, 1.2)


# The command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    parts = (part("good", "that is kept"), part("missed", "that is missed"), part("not_here", "for a library"), part("killed"))
    monkeypatch.setattr(command, "SUITES", {"mine": parts, "other": (part("good"),)})
    folder = tmp_path / "results"

    def call(*arguments: str) -> tuple[int, str, str, dict[str, Any]]:
        try:
            code = command.main([*arguments, "--results", str(folder)])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        files = list(folder.glob("mine-*.json"))
        return code, said.out, said.err, json.loads(files[0].read_text()) if files else {}

    return call


def test_only_runs_a_part_and_leaves_the_rest_as_it_was(run: Any) -> None:
    assert run("mine", "--only", "GOOD")[0] == 0
    code, said, _, stored = run("mine", "--only", "not_here", "--only", "MISSED")
    assert code == 1
    assert [figure["id"] for figure in stored["figures"]] == ["GOOD", "GOOD", "MISSED", "NOT_HERE"]
    assert stored["raw"] == {"GOOD": {"cells": [1, 2]}}
    assert stored["machine"] == stored["fingerprint"]["id"] == stored["figures"][0]["machine"]
    assert "beside 2 figures of earlier runs" in said
    assert "speed" not in said
    assert "not run: torch-sparse is not installed" in said
    assert "1 not run, 1 MISSED" in said or "1 MISSED, 1 not run" in said


def test_where_everything_must_run_what_did_not_is_a_failure(run: Any) -> None:
    assert run("mine", "--only", "NOT_HERE")[0] == 0
    assert run("mine", "--only", "NOT_HERE", "--require-all")[0] == 1
    assert run("mine", "--only", "GOOD", "--require-all")[0] == 0


def test_only_takes_a_word_of_the_title_and_refuses_one_that_is_nowhere(run: Any) -> None:
    assert [figure["id"] for figure in run("mine", "--only", "library")[3]["figures"]] == ["NOT_HERE"]
    code, _, said, _ = run("mine", "--only", "MT-99")
    assert code == 2
    assert "nothing in mine is called 'MT-99'; there are GOOD, MISSED" in said
    assert run("nothing")[0] == 2


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["cli", "--results", "/proc/nope"])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[-1]) == (
        "",
        "python -m benchmarks: error: argument --results: '/proc/nope' cannot be written: No such file or directory",
    )


def test_a_broken_part_ends_with_1_and_does_not_stop_the_others(run: Any) -> None:
    code, said, _, stored = run("mine", "--only", "KILLED", "GOOD")
    assert code == 1
    assert "1 BROKEN" in said
    assert [figure["broken"] for figure in stored["figures"]] == [False, False, True]


def test_json_is_all_there_is_on_stdout(run: Any) -> None:
    code, out, err, stored = run("all", "--only", "GOOD", "--json", "--quick")
    body = json.loads(out)
    assert (code, body["schema"], body["machine"]) == (0, 1, stored["machine"])
    assert [(figure["suite"], figure["what"]) for figure in body["figures"]] == [
        (s, w) for s in ("mine", "other") for w in ("speed", "size")
    ]
    assert all(figure["quick"] for figure in body["figures"])
    assert "target >= 1 times  UNPROVEN  (quick run)" in err


def test_a_part_that_does_not_end_is_stopped_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orphan is in a session of its own and does not know its parent; the part cleans up."""
    pid, cleaned = tmp_path / "pid", tmp_path / "cleaned"
    (tmp_path / "bench_long.py").write_text(
        "import pathlib, subprocess, time\n"
        "def figures(run):\n"
        "    orphan = 'sleep 60 & echo $!'\n"
        f"    with open({str(pid)!r}, 'wb') as out:\n"
        "        subprocess.run(orphan, shell=True, start_new_session=True, stdout=out, check=True)\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        f"        pathlib.Path({str(cleaned)!r}).touch()\n"
    )
    monkeypatch.setattr(harness, "LEAST_LIMIT_S", 3.0)
    (figure,) = run_part(Part("L", "long", "bench_long:figures", 0.01), quick=False).figures
    assert (figure.word, figure.note) == ("BROKEN", "it had not ended after 3 s and was stopped")
    assert cleaned.exists()
    wait_for(lambda: not psutil.pid_exists(int(pid.read_text())))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_part_and_its_neighbours_end_with_the_command(end: signal.Signals, tmp_path: Path) -> None:
    """The neighbour asks now and then whether its parent is still there."""
    pids = tmp_path / "pids"
    (tmp_path / "bench_long.py").write_text(
        "import os, pathlib, time\n"
        "from benchmarks.trust.neighbours import neighbours\n"
        "import psutil\n"
        "def figures(run):\n"
        "    with neighbours('hogs'):\n"
        f"        fresh = pathlib.Path({str(pids)!r} + '.new')\n"
        "        fresh.write_text(' '.join(map(str, [os.getpid(), *(c.pid for c in psutil.Process().children())])))\n"
        f"        fresh.rename({str(pids)!r})\n"
        "        time.sleep(60)\n"
    )
    start = "from benchmarks.harness import Part, run_part; run_part(Part('L', 'long', 'bench_long:figures'), quick=True)"
    command = subprocess.Popen([sys.executable, "-c", start], stderr=subprocess.DEVNULL)
    wait_for(pids.exists)
    running = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    assert len(running) == 3
    command.send_signal(end)
    command.wait()
    wait_for(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running))


def wait_for(held: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not held():
        assert time.monotonic() < end
        time.sleep(0.05)
