"""Wheels are kept apart by what they were built for, and only whole ones count."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("torch_sparse_wheels", ROOT / "scripts" / "torch_sparse_wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_says_what_the_wheels_fit(wheels):
    assert wheels.key("2.15.0+cu132", "cp311", "linux-x86_64") == "cp311-torch2.15.0+cu132-linux_x86_64"
    folders = {wheels.key(t, p, "linux-x86_64") for t in ("2.15.0+cpu", "2.15.0+cu132", "2.14.1") for p in ("cp310", "cp311")}
    assert len(folders) == 6


def test_the_versions_are_those_of_the_constraints(wheels):
    wanted = wheels.requirements((ROOT / "constraints.txt").read_text())
    assert [one.split("==")[0] for one in wanted] == ["torch-scatter", "torch-sparse"]
    with pytest.raises(KeyError, match="torch-sparse"):
        wheels.requirements("torch-scatter==2.1.2\n")


def test_what_has_no_wheel_of_that_version_is_missing(wheels, tmp_path):
    wanted = ["torch-scatter==2.1.2", "torch-sparse==0.6.18"]
    assert wheels.missing(tmp_path / "nowhere", wanted) == wanted
    (tmp_path / "torch_scatter-2.1.2-cp311-cp311-linux_x86_64.whl").touch()
    (tmp_path / "torch_sparse-0.6.17-cp311-cp311-linux_x86_64.whl").touch()
    assert wheels.missing(tmp_path, wanted) == ["torch-sparse==0.6.18"]


def test_a_build_that_fails_leaves_no_wheel(wheels, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "PIP", ("false",))
    with pytest.raises(SystemExit, match="could not build a==1"):
        wheels.build(["a==1"], tmp_path / "wheels")
    assert list((tmp_path / "wheels").iterdir()) == []
