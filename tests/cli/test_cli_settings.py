from __future__ import annotations

from pathlib import Path

import pytest

from sparsefleet.cli.settings import SETTINGS, Value, export, resolve
from sparsefleet.errors import UserError


def resolved(tmp_path: Path, flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> dict[str, Value]:
    (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
    return resolve(flags or {}, env or {}, tmp_path / "a" / "b", tmp_path / "user.toml")


def test_precedence_and_origins(tmp_path: Path) -> None:
    assert resolved(tmp_path)["max_trials"] == Value(10_000, "default")
    (tmp_path / "user.toml").write_text("max_trials = 1\nmax_parallel = 9\n")
    assert resolved(tmp_path)["max_trials"] == Value(1, f"file {tmp_path / 'user.toml'}")
    (tmp_path / "sparsefleet.toml").write_text("max_trials = 2\n")
    assert resolved(tmp_path)["max_trials"] == Value(2, f"file {tmp_path / 'sparsefleet.toml'}")
    (tmp_path / "a" / "sparsefleet.toml").write_text("max_trials = 3\n")
    assert resolved(tmp_path)["max_trials"].value == 3  # the nearest file upwards
    assert resolved(tmp_path)["max_parallel"].value == 9  # the user's file still counts
    env = {"SPARSEFLEET_MAX_TRIALS": "4"}
    assert resolved(tmp_path, env=env)["max_trials"] == Value(4, "environment SPARSEFLEET_MAX_TRIALS")
    assert resolved(tmp_path, {"max_trials": "5"}, env)["max_trials"] == Value(5, "flag --max-trials")


def test_a_path_is_relative_to_what_says_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sparsefleet.toml").write_text('home = "here"\n')
    assert resolved(tmp_path)["home"].value == str(tmp_path / "a" / "here")
    assert resolved(tmp_path, {"home": "../there"})["home"].value == str(tmp_path / "a" / "there")


def test_defaults_that_follow(tmp_path: Path) -> None:
    found = resolved(tmp_path, {"home": str(tmp_path / "h")})
    assert found["mlflow_uri"] == Value(f"sqlite:///{tmp_path / 'h' / 'mlflow.db'}", "default")
    assert found["artifacts"].value == (tmp_path / "h" / "artifacts").as_uri()
    assert resolved(tmp_path, env={"MLFLOW_TRACKING_URI": "http://x"})["mlflow_uri"] == Value("http://x", "environment MLFLOW_TRACKING_URI")
    both = {"MLFLOW_TRACKING_URI": "http://x", "SPARSEFLEET_MLFLOW_URI": "http://y"}
    assert resolved(tmp_path, env=both)["mlflow_uri"].value == "http://y"


def test_defaults_are_those_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet import home

    for name in ("SPARSEFLEET_HOME", "SPARSEFLEET_DATA", "SPARSEFLEET_CACHE", "SPARSEFLEET_ARTIFACTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = resolve({}, {}, tmp_path, tmp_path / "none.toml")
    assert (found["home"].value, found["cache"].value) == (str(home.home()), str(home.cache_dir()))
    assert (found["data"].value, found["artifacts"].value) == (str(home.data_root()), home.artifact_root())


def test_what_was_decided_is_exported(tmp_path: Path) -> None:
    env: dict[str, str] = {}
    export(resolved(tmp_path, {"home": str(tmp_path / "h"), "data": str(tmp_path / "d")}), env)
    assert env == {"SPARSEFLEET_HOME": str(tmp_path / "h"), "SPARSEFLEET_DATA": str(tmp_path / "d")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_trial = 1\n", "did you mean 'max_trials'"),
        ("max_trials = 0\n", "whole number"),
        ("max_trials = true\n", "whole number"),
        ('max_trials = "many"\n', "whole number"),
        ("home = 3\n", "a path"),
        ("home = \n", "is not TOML"),
        ("[a]\nb = 1\n", "unknown setting 'a'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "sparsefleet.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolved(tmp_path)
    assert said in str(caught.value)
    assert "sparsefleet.toml" in str(caught.value)


def test_every_setting_has_help() -> None:
    assert all(s.help and s.env.startswith("SPARSEFLEET_") for s in SETTINGS.values())
