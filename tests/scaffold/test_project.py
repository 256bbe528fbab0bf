"""Every family's project: its names, its size, its manners, and that its plugin conforms to the contract."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
from click.testing import CliRunner

from sparsefleet import scaffold
from sparsefleet.cli.app import cli
from sparsefleet.errors import UserError
from sparsefleet.grid.load import load_text
from sparsefleet.plugin import FAMILIES
from sparsefleet.registry import Registry, catalog
from sparsefleet.scaffold.project import class_of, distribution_of, module_of
from sparsefleet.testing import checks_for

LONGEST = "a-name-of-thirty-characters-it"


def new(*arguments):
    return CliRunner().invoke(cli, ["plugins", "new", *map(str, arguments)])


def test_every_family_has_a_template_and_a_target():
    assert sorted(scaffold.TARGET_LINES) == sorted(FAMILIES)
    described = new("--help").stdout
    assert [family for family in FAMILIES if family not in described] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_plugin_is_short(family):
    module = scaffold.render(family, "my-own")["sf_my_own.py"]
    assert sum(1 for line in module.split("\n") if line.strip()) <= scaffold.TARGET_LINES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_its_page_is_made_of_sentences(family):
    said = scaffold.render(family, "my-own")["README.md"].split("\n")[2]
    assert re.fullmatch(r"The (data set|[a-z]+) `my-own` for sparsefleet: [a-z][^.?!]*\.", said)
    assert "dataset" not in said


@pytest.mark.parametrize("name", ["x", "my-own", LONGEST])
def test_every_project_is_linted_and_formatted(name, tmp_path):
    assert name != LONGEST or len(name) == 30
    for family in FAMILIES:
        folder = tmp_path / family
        folder.mkdir()
        for file, text in scaffold.render(family, name).items():
            assert "$" not in text
            assert text.endswith("\n")
            (folder / file).write_text(text)
    rules = "E,F,W,I,UP,B,C4,SIM,RUF,PT,N,PIE,RET"
    for command in (["check", "--extend-select", rules], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plugin_works_conforms_and_its_grid_loads(family, plugin_distribution):
    name = f"own-{family}"
    texts, module = scaffold.render(family, name), module_of(name)
    plugin_distribution(distribution_of(name), {module: texts[f"{module}.py"]})
    found = catalog()
    cls = Registry(found).plugin_class(family, name)
    assert cls is getattr(import_module(module), class_of(family, name))
    for one in checks_for(cls()):
        if not getattr(one, "heavy", False):  # those are for test_every_family
            one(cls())
    load_text(texts["grid.yaml"], "grid.yaml", catalog=found)


def test_what_is_written_and_what_to_do_next(tmp_path):
    result = new("pruner", "my-own", "--into", tmp_path / "deep")
    folder = tmp_path / "deep" / "sf-my-own"
    assert result.exit_code == 0
    assert result.stdout.split() == [str(path) for path in sorted(folder.iterdir())]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "grid.yaml",
        "pyproject.toml",
        "sf_my_own.py",
        "test_sf_my_own.py",
    ]
    told = [line.strip() for line in result.stderr.split("\n") if line.strip()]
    assert told[0] == "next:"
    readme = (folder / "README.md").read_text()
    assert told[-3:] == ["sparsefleet plugins check my-own", "pytest", "sparsefleet submit grid grid.yaml"]
    assert all(line in readme for line in told[-3:])


def test_the_answer_as_json(tmp_path):
    body = json.loads(new("model", "my-own", "--into", tmp_path, "--json").stdout)
    assert (body["schema"], body["family"], body["folder"]) == (1, "model", str(tmp_path / "sf-my-own"))
    assert body["next"][0] == f"cd {tmp_path / 'sf-my-own'}"


def test_nothing_is_overwritten(tmp_path):
    assert new("pruner", "my-own", "--into", tmp_path).exit_code == 0
    module = tmp_path / "sf-my-own" / "sf_my_own.py"
    module.write_text("mine")
    result = new("layer", "my-own", "--into", tmp_path)
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert module.read_text() == "mine"


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("prunner", "mine", "did you mean 'pruner'"),
        ("pruner", "My_Own", "a plugin cannot be called 'My_Own'"),
        ("pruner", "2x", "a letter first"),
        ("pruner", "a--b", "a plugin cannot be called"),
        ("pruner", LONGEST + "s", "up to 30"),
        ("pruner", "../etc", "a plugin cannot be called"),
        ("pruner", "null", "a grid would read another thing"),
        ("pruner", "magnitude", "is there already, from sparsefleet"),
    ],
)
def test_names_that_cannot_be(family, name, said, tmp_path):
    result = new(family, name, "--into", tmp_path)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_family_may_use_the_name_but_not_the_module(plugin_distribution, tmp_path):
    assert scaffold.write("layer", "magnitude", tmp_path).is_dir()
    plugin_distribution("other", {"sf_taken": ""})
    with pytest.raises(UserError, match="module 'sf_taken' is installed already"):
        scaffold.write("pruner", "taken", tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        scaffold.write("pruner", "my-own", tmp_path / "file")


def test_the_requirement_is_this_minor_release(monkeypatch):
    monkeypatch.setattr("sparsefleet.__version__", "0.3.1")
    assert 'dependencies = ["sparsefleet>=0.3,<0.4"]' in scaffold.render("pruner", "my-own")["pyproject.toml"]
