"""``sparsefleet pictures``: of a trial's folder, of a trial and a sweep in the ledger, and what it says where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_home import fill, run_program

from sparsefleet.ledger import open_ledger
from sparsefleet.ledger.rows import SweepTrial
from sparsefleet.ledger.store import ArtifactStore

KINDS = {"masks.png", "weights.png", "histograms.png", "evolution.png", "curves.png", "density.png"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A trial's folder, a home whose ledger holds the trial, and its id."""
    from sparsefleet.trial.request import TrialRequest
    from sparsefleet.trial.run import run_trial
    from sparsefleet.trial.spec import TrialSpec

    folder, home = tmp_path_factory.mktemp("trial"), tmp_path_factory.mktemp("home")
    spec = TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "params": {"hidden": [32]}},
            "layer": {"name": "csr"},
            "density": 0.2,
            "method": {"rewirer": {"name": "set", "params": {"every": 10}}},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "train": {"epochs": 2, "batch_size": 64},
        }
    )
    key = spec.spec_id * 5
    record = run_trial(TrialRequest(spec=spec, trial_key=key, workdir=folder, data_root=folder)).to_json()
    assert record["state"] == "SUCCEEDED", record["reason"]
    store = ArtifactStore((home / "artifacts").as_uri())
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    record["artifacts"] = [store.put(path, path.relative_to(folder).as_posix()).to_json() for path in paths]
    with open_ledger(home) as ledger:
        ledger.create_sweep(
            "demo-0a1b2c3d", "demo", "0a1b2c3d", "name: demo\n", {}, [SweepTrial(0, key, spec.spec_id, spec.to_json(), "sparse")]
        )
        attempt = ledger.lease(key, "demo-0a1b2c3d", "here")
        assert attempt is not None
        assert ledger.commit(key, attempt, record)
        ledger.set_sweep_state("demo-0a1b2c3d", "DONE")
    return folder, home, spec.spec_id


def test_a_folder_a_trial_and_a_trial_of_a_sweep_give_the_same_pictures(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, home, spec_id = finished
    asked = {"folder": [str(folder)], "trial": [spec_id[:8]], "of": ["demo", "--trial", spec_id[:6]]}
    found = {}
    for name, words in asked.items():
        done = run_program("pictures", *words, "--out", str(tmp_path / name), "--json", home=home)
        assert done.returncode == 0, done.stderr
        paths = [Path(path) for path in json.loads(done.stdout)["pictures"]]
        assert {path.parent for path in paths} == {tmp_path / name / spec_id}
        found[name] = {path.name: path.read_bytes() for path in paths}
    assert set(found["folder"]) == KINDS
    assert found["folder"] == found["trial"] == found["of"]


def test_a_sweep_gives_the_pictures_of_the_whole(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, home, _ = finished
    done = run_program("pictures", "--out", str(tmp_path), "--kind", "accuracy", "--kind", "patterns", home=home)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "demo-0a1b2c3d").iterdir()) == ["accuracy.png", "patterns.png"]
    assert done.stdout == f"2 pictures in {tmp_path}\n"


def test_a_sweep_gives_a_kind_of_single_trials_for_each_row_of_its_table(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, home, spec_id = finished
    done = run_program("pictures", "demo", "--out", str(tmp_path), "--kind", "masks", home=home)
    assert done.returncode == 0, done.stderr
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")] == [f"{spec_id}/masks.png"]
    assert done.stdout == f"1 picture in {tmp_path}\n"
    done = run_program("pictures", "demo", "--out", str(tmp_path / "whole"), home=home)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["demo-0a1b2c3d"]


def test_the_evolution_of_a_layer_that_is_not_there_is_bad_input(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, home, _ = finished
    done = run_program("pictures", str(folder), "--out", str(tmp_path), "--kind", "evolution", "--layer", "fc9", home=home)
    assert done.returncode == 2
    assert "the connections of layer 'fc9' were not kept" in done.stderr


def test_a_trial_that_has_not_ended_and_one_that_is_not_there_are_bad_input(tmp_path: Path) -> None:
    sweep = fill(tmp_path)
    with open_ledger(tmp_path) as ledger:
        waiting = next(iter(ledger.trials(sweep))).spec_id
    done = run_program("pictures", waiting, "--out", str(tmp_path / "out"), home=tmp_path)
    assert done.returncode == 2
    assert f"{waiting} is PENDING" in done.stderr
    done = run_program("pictures", sweep, "--trial", "zzz", home=tmp_path)
    assert done.returncode == 2
    assert "has no trial 'zzz'" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_program("pictures", str(empty), home=tmp_path)
    assert done.returncode == 2
    assert "holds no finished trial" in done.stderr
