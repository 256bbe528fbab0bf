"""``sparsefleet reproduce``: the list, trials that are there, and a small table that is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_home import fill, run_program
from click.testing import CliRunner, Result

from sparsefleet.cli.app import cli
from sparsefleet.report.reproduction import shipped_reproductions

Invoke = Callable[..., Result]
TABLE = """
name: tiny
title: digits in seconds
source: made for this test
cost: seconds
unit: accuracy
tolerance: 0.45
because: "0.45: any training passes"
budget: {dataset: digits, train.epochs: 2, train.batch_size: 64, train.augment: false, validation: 0.1, n_test: 360, seeds: 1}
differs: [everything]
grid:
  name: tiny-table
  dataset: digits
  model: {mlp: {hidden: [32]}}
  optimizer: {sgd: {lr: 0.1}}
  train: {epochs: 2}
  density: 0.3
  layer: csr
  method: {rewirer: set}
  control_arms: []
  measure: {level: none}
rows:
  - {select: {arm: dense}, published: 0.8}
  - {select: {method: set, density: 0.3}, published: 0.8}
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command line in an empty folder; its home is ``tmp_path / "home"``."""
    for name in ("SPARSEFLEET_DATA", "SPARSEFLEET_RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli, args)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TABLE)
    return path


def test_the_list_names_every_table_with_its_cost(invoke: Invoke) -> None:
    result = invoke("reproduce")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["name", "rows", "needs", "cost", "source"]
    assert [line.split()[0] for line in lines[1:]] == shipped_reproductions()
    assert "next: sparsefleet reproduce" in result.stderr
    body = json.loads(invoke("reproduce", "--json").stdout)
    assert body["schema"] == 1
    assert {one["name"]: one["needs_gpu"] for one in body["reproductions"]}["wrn-22-2"] is True


def test_trials_that_are_there_are_judged_and_nothing_runs(invoke: Invoke, tmp_path: Path, table: Path) -> None:
    sweep = fill(tmp_path / "home")
    result = invoke("reproduce", str(table), "--from", "demo")
    assert result.exit_code == 6, result.output
    assert result.stdout.splitlines()[-1] == "2 NOT RUN: this is not a reproduction"
    assert "differs: everything" in result.stdout
    body = json.loads(invoke("reproduce", str(table), "--from", sweep, "--json").stdout)
    assert (body["schema"], body["sweep"], body["exit_code"]) == (1, sweep, 6)
    assert [row["status"] for row in body["rows"]] == ["NOT RUN", "NOT RUN"]


def test_a_dry_run_shows_the_plan_and_makes_no_home(invoke: Invoke, tmp_path: Path, table: Path) -> None:
    result = invoke("reproduce", str(table), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "grid tiny-table: 1 seed = 1 trial, + 1 dense twin" in result.stdout
    assert "cost: seconds" in result.stdout
    assert f"next: sparsefleet reproduce {table}\n" in result.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("nosuch",), "no reproduction 'nosuch'"),
        (("lenet-300-100", "--from", "x", "--set", "train.epochs=1"), "--from looks at trials that are there"),
        (("lenet-300-100", "--set", "train.epochs=lots"), "--set train.epochs"),
        (("lenet-300-100", "--from", "nosuch"), "there is no"),
        (("lenet-300-100", "--dry-run", "--data", "/nowhere"), "MNIST is not in /nowhere"),
    ],
)
def test_bad_input_ends_with_2(invoke: Invoke, args: tuple[str, ...], told: str) -> None:
    result = invoke("reproduce", *args)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


def test_a_table_for_a_gpu_is_refused_without_one(invoke: Invoke) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = invoke("reproduce", "wrn-22-2")
    assert result.exit_code == 2
    assert "needs a GPU" in result.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_table_is_run_once_and_cut_short_is_no_reproduction(tmp_path: Path, table: Path) -> None:
    home = tmp_path / "home"
    done = run_program("reproduce", str(table), home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 PASS: reproduced"
    again = run_program("reproduce", str(table), "--json", home=home)
    body = json.loads(again.stdout)
    assert [row["status"] for row in body["rows"]] == ["PASS", "PASS"]
    assert "running" not in again.stderr
    short = run_program("reproduce", str(table), "--set", "train.epochs=1", home=home)
    assert short.returncode == 6, short.stderr
    assert "UNDER-TRAINED (all rows): train.epochs is 1, published 2" in short.stdout
    altered = run_program("reproduce", str(table), "--set", "optimizer.sgd.lr=0.2", home=home)
    assert altered.returncode == 6
    assert "ALTERED (all rows): optimizer.lr is 0.2, the recipe has 0.1" in altered.stdout
    assert "PASS" not in short.stdout + altered.stdout
