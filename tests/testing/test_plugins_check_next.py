"""What ``plugins check`` says to do next, and what it refuses as the user's own mistake."""

import pytest
from click.testing import CliRunner

from sparsefleet.cli.app import cli
from sparsefleet.testing.targets import installs

BODY = """
from pydantic import Field, model_validator
from sparsefleet import Pruner, hookimpl

class Bounded(Pruner):
    name = "bounded"
    end: float = Field(0.5, gt=0, le=1, description="share")
    begin: float = Field(0.1, ge=0, le=1, description="share")

    @model_validator(mode="after")
    def _in_order(self):
        if self.begin >= self.end:
            raise ValueError("begin must come before end")
        return self

    def score(self, conn):
        return conn.weight.abs(){wrong}

@hookimpl
def sparsefleet_pruners():
    return [Bounded]
"""


@pytest.fixture
def ran(monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", "")
    return lambda *arguments: CliRunner().invoke(cli, ["plugins", "check", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my bounded.py"
    path.write_text(BODY.format(wrong=""))
    return path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("end=0",), "less than or equal to the minimum of 0"),
        pytest.param(("begin=0.9",), "begin must come before end", marks=pytest.mark.slow),
    ],
)
def test_a_value_out_of_bounds_is_the_users_mistake(ran, file, given, words):
    done = ran(file, *(part for item in given for part in ("--set", item)), "--only", "has_a_name")
    assert done.exit_code == 2
    assert "--set" in done.stderr
    assert words in done.stderr
    assert "FAIL" not in done.output


@pytest.mark.slow
def test_what_failed_is_run_again_with_the_same_parameters(ran, file):
    file.write_text(BODY.format(wrong="[:-1]"))
    done = ran(file, "--set", "end=0.7", "--only", "gives_one_score_per_connection")
    assert done.exit_code == 3, done.output
    assert done.stderr.splitlines()[-1] == f"next: sparsefleet plugins check '{file}' --set end=0.7 --only gives_one_score_per_connection"


@pytest.mark.slow
def test_after_a_file_its_grid_is_submitted(ran, file):
    done = ran(file, "--only", "has_a_name")
    assert done.stderr.splitlines()[-1] == f"next: sparsefleet submit grid grid.yaml --plugin '{file}'"


def test_a_file_that_is_not_there(ran, tmp_path):
    done = ran(tmp_path / "nosuch.py")
    assert done.exit_code == 2
    assert "is not there" in done.stderr
    assert "--plugin" not in done.stderr


def test_a_folder_is_installed_once(tmp_path, monkeypatch):
    def project(name):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "0.1"\n')
        return installs(str(tmp_path))

    assert project("of-nobody-at-all") == f"pip install -e {tmp_path}"
    assert project("pytest") is None
    monkeypatch.chdir(tmp_path)
    assert installs(".") is None
    assert installs("magnitude") is None
