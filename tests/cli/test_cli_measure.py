from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_home import environment, run_program
from cli_timings import body, measured_home
from click.testing import CliRunner, Result

from sparsefleet.cli.app import cli
from sparsefleet.ledger import open_ledger

Invoke = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def alter(home: Path, **changes: object) -> None:
    """Enter a timing that its samples do not bear out."""
    with open_ledger(home) as ledger:
        sweep = ledger.sweeps()[0].sweep
        row = min(ledger.timings(sweep), key=lambda row: row.config_key)
        ledger.share_timing(sweep, replace(row, timings=[{**row.timings[0], **changes}]), row.keys)


def test_recheck_comes_to_the_same_in_another_process(home: Path) -> None:
    sweep = measured_home(home, body("a"), body("b", speedup=0.5, op="forward"), body("c", control=1.2))
    done = run_program("measure", "recheck", "demo", home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"3 timings of {sweep} computed again from the raw samples: every figure and verdict the same to the last digit"
        " (FASTER 1, NOT_TRUSTWORTHY 1, SLOWER 1)\n"
    )
    found = json.loads(run_program("measure", "recheck", sweep, "--json", home=home).stdout)
    assert (found["rechecked"], found["wrong"], [one["differences"] for one in found["timings"]]) == (3, 0, [[], [], []])


@pytest.mark.parametrize(("name", "value"), [("speedup", 2.5), ("verdict", "SAME"), ("ci95", [1.9, 2.1]), ("level", "publish")])
def test_recheck_names_what_does_not_follow(home: Path, name: str, value: object) -> None:
    measured_home(home, body("a"), body("b"))
    alter(home, **{name: value})
    result = invoke("measure", "recheck", "demo")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "1 of 2 timings" in result.stderr
    assert f"{name} is" in result.stderr
    assert "step, batch 64 (a)" in result.stderr


def test_an_altered_timing_is_shown_nowhere_and_resume_is_named(home: Path) -> None:
    sweep = measured_home(home, body("a"), body("b"))
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("UPDATE timings SET timings=replace(timings, '\"speedup\":2.', '\"speedup\":3.') WHERE config_key='b'")
    db.close()
    for args in (("compare", "demo"), ("measure", "recheck", "demo")):
        result = invoke(*args)
        assert result.exit_code == 1, args
        assert result.stdout == ""
        assert f"the timing of configuration b of {sweep} does not match its digest" in result.stderr
        assert f"sparsefleet resume {sweep}" in result.stderr


def test_recheck_sees_altered_samples(home: Path) -> None:
    measured_home(home, body("a"))
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("UPDATE samples SET body=?", (body("a", speedup=3.0),))
    db.close()
    result = invoke("measure", "recheck", "demo", "--json")
    assert result.exit_code == 1
    assert "do not match their digest" in json.loads(result.stdout)["timings"][0]["differences"][0]


def test_require_trustworthy_ends_with_6_after_the_table(home: Path) -> None:
    sweep = measured_home(home, body("a"), body("b", control=1.2, batch_size=1))
    for args in (("compare", "demo", "--require-trustworthy"), ("resume", "demo", "--require-trustworthy")):
        result = invoke(*args)
        assert result.exit_code == 6, result.output
        assert "1 of 2 timings are NOT_TRUSTWORTHY" in result.stdout
        assert f"error: 1 of 2 timings of {sweep} are not trustworthy" in result.stderr
        assert "dense against dense reads" in result.stderr
        assert f"fix:   sparsefleet resume {sweep} --remeasure" in result.stderr
    assert invoke("compare", "demo").exit_code == 0
    asked = invoke("compare", "demo", "--json", "--require-trustworthy")
    assert (asked.exit_code, json.loads(asked.stdout)["schema"]) == (6, 1)


def test_require_trustworthy_is_content_with_trusted_figures(home: Path) -> None:
    measured_home(home, body("a"), body("b", batch_size=1))
    assert invoke("compare", "demo", "--require-trustworthy").exit_code == 0


def test_a_row_without_the_timing_that_was_asked_for_is_not_trustworthy(home: Path) -> None:
    sweep = measured_home(home, level="screen")
    result = invoke("compare", sweep, "--require-trustworthy")
    assert result.exit_code == 6
    assert f"1 row of {sweep} has no timing" in result.stderr


def test_nobody_misses_timings_that_were_not_asked_for(home: Path) -> None:
    sweep = measured_home(home, level="none")
    assert invoke("compare", sweep, "--require-trustworthy").exit_code == 0


def test_other_machines_are_shown_only_when_asked(home: Path) -> None:
    measured_home(home, body("a", cpu="another cpu", batch_size=1), body("b"))
    result = invoke("compare", "demo")
    assert "1 row was timed on another machine (fp:another cpu, differing: cpu model: another cpu against a cpu)" in result.stdout
    assert "--allow-cross-machine shows them" in result.stdout
    (row,) = (row for row in json.loads(invoke("compare", "demo", "--json").stdout)["rows"] if row["arm"] == "sparse")
    assert [t["batch_size"] for t in row["timings"]] == [64]
    shown = invoke("compare", "demo", "--allow-cross-machine")
    assert "shown because of --allow-cross-machine" in shown.stdout
    (row,) = (
        row for row in json.loads(invoke("compare", "demo", "--allow-cross-machine", "--json").stdout)["rows"] if row["arm"] == "sparse"
    )
    assert sorted(t["batch_size"] for t in row["timings"]) == [1, 64]


def test_theory_stands_beside_the_measured_figure(home: Path) -> None:
    measured_home(home, body("a"))
    assert "roofline" not in invoke("compare", "demo").stdout.splitlines()[0]
    lines = invoke("compare", "demo", "--theory").stdout.splitlines()
    heading = next(line for line in lines if "roofline" in line and "FLOPs" in line)
    assert "10.00×" in lines[lines.index(heading) + 2]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("measure", "recheck"), "one sweep"),
        (("measure", "recheck", "demo", "--op", "step"), "--op"),
        (("measure", "recheck", "nosuch"), "nosuch"),
        (("measure", "a", "b"), "one trial or folder"),
        (("measure", "nosuch"), "unknown trial"),
        (("measure", "no/such/folder"), "no folder"),
        (("measure", "."), "model.safetensors"),
        (("measure",), "Missing argument"),
        (("measure", "x", "--batch", "0"), "--batch"),
    ],
)
def test_bad_input_ends_with_2(home: Path, args: tuple[str, ...], said: str) -> None:
    measured_home(home)
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert said.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr


def test_a_dense_trial_is_its_own_twin(home: Path) -> None:
    measured_home(home)
    from sparsefleet.ledger import read_ledger

    with read_ledger(home) as ledger:
        dense = next(t for t in ledger.trials("demo-0a1b2c3d") if t.arm == "dense")
    result = invoke("measure", dense.spec_id)
    assert result.exit_code == 2
    assert "kept no model.safetensors" in result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial that ran."""
    home = tmp_path_factory.mktemp("trained")
    spec = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [256]}},
        "layer": {"name": "csr"},
        "density": 0.1,
        "method": {"rewirer": {"name": "set"}},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 1, "batch_size": 64, "max_steps": 5},
        "seed": 0,
    }
    (home / "trial.json").write_text(json.dumps(spec))
    done = run_program("run", str(home / "trial.json"), "--json", home=home)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


@pytest.mark.slow
def test_a_folder_is_measured_by_hand(trained: Path, tmp_path: Path) -> None:
    from sparsefleet.measure.recheck import recheck

    done = run_program(
        "measure", str(trained), "--op", "forward", "--batch", "32", "--json", "--samples", "raw.json", home=tmp_path, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    timing = found["timing"]
    assert (timing["op"], timing["batch_size"], timing["level"], timing["execution"]) == ("forward", 32, "screen", "sparse_csr")
    assert timing["verdict"] in ("FASTER", "SLOWER", "SAME", "INCONCLUSIVE", "NOT_TRUSTWORTHY")
    assert found["headline_missing"] == ["an accuracy verdict"]
    assert recheck(timing, (tmp_path / "raw.json").read_bytes()) == []
    assert "measuring forward, batch 32, process 1" in done.stderr
    assert "nothing was written to the ledger" not in done.stderr  # --json: stderr keeps to progress
    assert not (tmp_path / "ledger.db").exists()


def test_a_foreign_file_in_the_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    record = json.loads((copy / "record.json").read_text())
    record["artifacts"] = [{"name": "model.safetensors", "sha256": "0" * 64, "bytes": 1}]  # as a committed record names its files
    (copy / "record.json").write_text(json.dumps(record))
    result = invoke("measure", str(copy))
    assert (result.exit_code, "is not the file that its record names" in result.stderr) == (2, True)


def test_help_is_instant_and_names_both_uses(tmp_path: Path) -> None:
    code = "import sys; from click.testing import CliRunner; from sparsefleet.cli.app import cli; r = CliRunner().invoke(cli, ['measure', '--help']); print(r.output); print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), check=True).stdout
    assert "TRIAL | FOLDER | recheck SWEEP" in shown
    assert shown.rstrip().endswith("[]")
