from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_home import fill, spec
from click.testing import CliRunner, Result

from sparsefleet.cli.app import cli

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command line in an empty folder; its home is ``tmp_path / "home"``."""
    for name in ("SPARSEFLEET_DATA", "MLFLOW_TRACKING_URI", "SPARSEFLEET_MLFLOW_URI", "SPARSEFLEET_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli, args)


def test_status_json_is_the_promised_object(invoke: Invoke, tmp_path: Path) -> None:
    sweep = fill(tmp_path / "home")
    body = json.loads(invoke("status", "--json").stdout)
    assert body["schema"] == 1
    assert body["sweeps"][0]["sweep"] == sweep
    assert body["sweeps"][0]["counts"]["total"] == 4
    assert {"sweep", "state", "counts"} <= set(body["sweeps"][0])
    assert len(json.loads(invoke("status", "demo", "--trials", "--json").stdout)["trials"]) == 4


def test_status_text(invoke: Invoke, tmp_path: Path) -> None:
    sweep = fill(tmp_path / "home")
    result = invoke("status")
    assert result.stdout.splitlines()[0].split()[:4] == ["sweep", "state", "done", "total"]
    assert sweep in result.stdout
    assert "next: sparsefleet" in result.stderr
    assert "next:" not in result.stdout


def test_reading_makes_no_home(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("status")
    assert result.exit_code == 2
    assert "there is no ledger" in result.stderr
    assert not (tmp_path / "home").exists()


def test_compare_json_of_a_sweep_that_has_not_run(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "home")
    body = json.loads(invoke("compare", "demo", "--json").stdout)
    assert body["schema"] == 1
    assert [(row["method"], row["trials"], row["accuracy"]) for row in body["rows"]] == [("dense", 2, None), ("set", 2, None)]
    result = invoke("compare", "--by", "density")
    assert result.exit_code == 0
    assert "2 not run" in result.stdout
    assert "0 of 4 trials have ended" in result.stderr


def test_the_margin_is_in_every_row(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "home")
    assert {row["acc_margin"] for row in json.loads(invoke("compare", "demo", "--json").stdout)["rows"]} == {0.005}
    asked = invoke("compare", "demo", "--margin", "0.02", "--json")
    assert {row["acc_margin"] for row in json.loads(asked.stdout)["rows"]} == {0.02}


@pytest.mark.parametrize(
    "args",
    [
        ("compare", "nosuch"),
        ("compare", "demo", "--by", "densty"),
        ("compare", "demo", "--metric", "los"),
        ("compare", "demo", "--csv", "--json"),
        ("compare", "demo", "--margin", "-0.1"),
        ("compare", "demo", "--margin", "nan"),
        ("compare", "--form", "mlflow"),
        ("resume", "nosuch"),
        ("resume",),
        ("plugins", "show", "rigll"),
        ("plan", "nosuch.yaml"),
        ("run", "nosuch.json"),
        ("run", "quickstart", "--point", "0", "--device", "tpu"),
        ("run", "quickstart", "--point", "0", "--device", "cuda:4096"),
        ("submit", "grid", "quikstart"),
        ("submit", "gird"),
        ("statsu",),
        ("completion", "tcsh"),
        ("submit", "grid", "quickstart", "--max-trials", "none"),
    ],
)
def test_bad_input_ends_with_2(invoke: Invoke, tmp_path: Path, args: tuple[str, ...]) -> None:
    fill(tmp_path / "home")
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr


def test_a_place_that_is_a_file_is_bad_input(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEFLEET_CACHE", str(tmp_path / "file"))
    result = invoke("plan", "quickstart")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{tmp_path / 'file'} cannot be made a folder" in result.stderr
    assert "bug" not in result.stderr


def test_a_spec_whose_connections_do_not_fit_is_bad_input(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "sites.csv").write_text("layer,row,col\nhidden,1,2\n")
    params = {"file": str(tmp_path / "sites.csv"), "others": "random"}
    body = spec(0, 0.1).to_json()
    body["connectivity"] = {"name": "user", "params": params}
    (tmp_path / "spec.json").write_text(json.dumps(body))
    result = invoke("run", str(tmp_path / "spec.json"))
    assert result.exit_code == 2, result.output
    assert "the file names hidden; the model has fc1, fc2" in result.stderr


def test_close_matches(invoke: Invoke) -> None:
    assert "did you mean 'status'" in invoke("statsu").stderr
    assert "Did you mean 'grid'" in invoke("submit", "gird").stderr
    assert "did you mean 'rigl'" in invoke("plugins", "show", "rigll").stderr
    assert "--json" in invoke("status", "--jsn").stderr


def test_plugins(invoke: Invoke) -> None:
    body = json.loads(invoke("plugins", "list", "--json").stdout)
    assert body["schema"] == 1
    assert set(body["plugins"][0]) == {"family", "name", "distribution", "version", "state", "reason", "deprecated"}
    names = {(p["family"], p["name"]) for p in body["plugins"]}
    assert {("rewirer", "rigl"), ("layer", "csr"), ("dataset", "digits")} <= names
    shown = invoke("plugins", "show", "rigl").stdout
    assert "drop_fraction" in shown
    assert "1911.11134" in shown


def test_plugins_show_wraps_rule_and_limits_to_the_terminal(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    told = invoke("plugins", "show", "rigl").stdout
    prose = told[told.index("  paper ") : told.index("  parameter ")].rstrip("\n").split("\n")
    assert max(map(len, prose)) <= 60
    assert [line.split()[0] for line in prose if not line.startswith(" " * 10)] == ["paper", "rule", "cannot", "facts"]
    entry = json.loads(invoke("plugins", "show", "rigl", "--json").stdout)["plugins"][0]
    assert entry["facts"]["cannot"] in " ".join(" ".join(prose).split())


def test_config_show_names_origins(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "sparsefleet.toml").write_text("max_parallel = 3\n")
    found = {s["name"]: s for s in json.loads(invoke("config", "show", "--json").stdout)["settings"]}
    assert found["home"]["origin"] == "environment SPARSEFLEET_HOME"
    assert (found["max_parallel"]["value"], found["max_parallel"]["origin"]) == (3, f"file {tmp_path / 'sparsefleet.toml'}")
    assert found["address"]["origin"] == "default"


def test_home_may_stand_before_or_after_the_verb(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "other")
    assert invoke("--home", str(tmp_path / "other"), "status").exit_code == 0
    assert invoke("status", "--home", str(tmp_path / "other")).exit_code == 0


def test_doctor(invoke: Invoke) -> None:
    result = invoke("doctor", "--json")
    body = json.loads(result.stdout)
    assert result.exit_code == (0 if body["ok"] else 3)
    names = {check["what"] for check in body["checks"]}
    assert {
        "python",
        "torch",
        "ray",
        "mlflow",
        "plugins",
        "home",
        "disk",
        "load",
        "steal",
        "threads",
        "data",
        "gpu",
        "mlflow runs",
    } <= names
    assert all(check["state"] in ("ok", "warn", "fail") for check in body["checks"])


def test_doctor_sees_an_open_ray_and_a_dead_mlflow(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_RAY_ADDRESS", "ray://192.0.2.1:10001")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    result = invoke("doctor", "--json")
    states = {check["what"]: check["state"] for check in json.loads(result.stdout)["checks"]}
    assert (states["ray"], states["mlflow runs"]) == ("fail", "fail")
    assert result.exit_code == 3
    assert "secret" not in result.output


def test_a_cancelled_sweep(invoke: Invoke, tmp_path: Path) -> None:
    sweep = fill(tmp_path / "home")
    stopped = invoke("cancel", "demo")
    assert (stopped.exit_code, stopped.stderr.splitlines()[-1]) == (0, f"next: sparsefleet resume {sweep}")
    watched = invoke("watch", "--every", "0.1")
    assert watched.exit_code == 130
    assert "0/4 done, 4 cancelled" in watched.stderr
    assert watched.stderr.splitlines()[-1] == f"next: sparsefleet resume {sweep}"


def test_logs_and_watch_of_what_has_not_run(invoke: Invoke, tmp_path: Path) -> None:
    sweep = fill(tmp_path / "home")
    assert "no log" in invoke("logs").stderr
    (tmp_path / "home" / "logs").mkdir(exist_ok=True)
    (tmp_path / "home" / "logs" / f"{sweep}.log").write_text("one\ntwo \x1b[31mred\x1b[0m\n")
    assert invoke("logs", "-n", "1").stdout == "two red\n"
    assert "trial" not in invoke("watch", "nosuch").stdout


def test_nothing_from_a_ledger_steers_the_terminal(invoke: Invoke, tmp_path: Path) -> None:
    from cli_home import spec

    from sparsefleet.ledger import SweepTrial, open_ledger

    evil = "\x1b]0;owned\x07\x1b[2J\u202ex"
    one = spec(0, model={"name": evil})
    with open_ledger(tmp_path / "home") as ledger:
        ledger.create_sweep("evil-00000000", "evil", "0" * 64, "", {}, [SweepTrial(0, "k" * 64, one.spec_id, one.to_json(), "dense")])
    for args in (("status", "--trials"), ("compare",), ("compare", "--csv"), ("compare", "--json"), ("status", "--json", "--trials")):
        output = invoke(*args).output
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert "\x07" not in output
