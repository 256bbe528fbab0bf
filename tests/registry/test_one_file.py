"""A plugin may be one file that a flag or the environment names; it is then a plugin like any other."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from sparsefleet import one_file
from sparsefleet.cli.app import cli
from sparsefleet.distributions import is_local, with_plugins
from sparsefleet.errors import UserError
from sparsefleet.fleet.bundle import make_bundle, unpacked
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.identity import code_of
from sparsefleet.trial.spec import TrialSpec

BODY = '''"""A pruner in one file."""
from pydantic import Field
from sparsefleet import Pruner, hookimpl

class Mine(Pruner):
    """Magnitude to a power."""
    name = "{name}"
    power: float = Field(2.0, gt=0, description="exponent")
    def score(self, conn):
        return conn.weight.abs() ** self.power

@hookimpl
def sparsefleet_pruners():
    return [Mine]
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "my-pruner.py"
    path.write_text(BODY.format(name="of-1"))
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in [n for n in sys.modules if n.startswith("my_pruner_")]:
        del sys.modules[name]


def entry(name):
    return catalog().get("pruner", name)


def test_it_is_found_and_built_like_any_other(file):
    found = entry("of-1")
    assert (found.state, found.distribution) == ("ok", "my-pruner.py")
    assert (found.version, found.module) == (one_file.materialise(file).version, one_file.materialise(file).module)
    assert Registry().plugin_class("pruner", "of-1")(power=3).power == 3
    assert [is_local(dist) for dist in with_plugins() if dist.metadata["Name"] == "my-pruner.py"] == [True]


def test_its_digest_is_in_the_trial_key(file):
    spec = TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp"},
            "layer": {"name": "csr"},
            "density": 0.5,
            "method": {"pruner": {"name": "of-1", "params": {"power": 2.0}}},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "train": {"epochs": 1},
            "seed": 0,
        }
    )
    before = code_of(spec, catalog())["pruner/of-1"]
    file.write_text(file.read_text().replace("Magnitude to", "Magnitude, to"))
    after = code_of(spec, catalog())["pruner/of-1"]
    assert before != after
    file.write_text(BODY.format(name="of-1"))
    assert code_of(spec, catalog())["pruner/of-1"] == before


def test_a_changed_file_takes_the_place_of_the_former(file):
    assert entry("of-1").state == "ok"
    file.write_text(BODY.format(name="of-2"))
    assert entry("of-2").state == "ok"
    assert "of-1" not in catalog().names("pruner")
    assert len([place for place in sys.path if one_file.is_one_file_folder(place)]) == 1


def test_an_edited_copy_in_the_cache_is_not_used(file):
    one = one_file.materialise(file)
    (one.folder / f"{one.module}.py").write_text("raise RuntimeError('somebody else wrote this')")
    again = one_file.materialise(file)
    assert again == one
    assert (one.folder / f"{one.module}.py").read_bytes() == file.read_bytes()


def test_two_files_of_one_name_are_refused(file, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere" / "my-pruner.py"
    other.parent.mkdir()
    other.write_text(BODY.format(name="of-3"))
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", os.pathsep.join([str(file), str(other), str(file)]))
    with pytest.raises(UserError, match=r"two plugin files are called my-pruner\.py"):
        catalog()
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", os.pathsep.join([str(file), str(file)]))
    assert entry("of-1").state == "ok"


def test_a_name_of_the_standard_library_shadows_nothing(tmp_path, monkeypatch):
    path = tmp_path / "random.py"
    path.write_text(BODY.format(name="of-random"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(path))
    assert entry("of-random").state == "ok"
    done = subprocess.run(
        [sys.executable, "-c", "from sparsefleet.registry import catalog; catalog(); import random; print(random.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "one-file" not in done.stdout


def test_a_broken_one_is_shown_with_its_reason(file):
    file.write_text("import no_such_thing_at_all\n")
    (found,) = [e for e in catalog().entries if e.distribution == "my-pruner.py"]
    assert found.state == "broken"
    assert "no_such_thing_at_all" in found.reason
    assert catalog().get("pruner", "magnitude").state == "ok"


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("absent.py", None, "is not there"),
        ("folder.py", "dir", "is a folder"),
        ("plugin.txt", "x", "is not a Python file"),
        ("big.py", "#" * (2 << 20), "bytes"),
    ],
)
def test_what_is_no_plugin_file_is_refused_in_a_sentence(tmp_path, name, body, reason):
    path = tmp_path / name
    if body == "dir":
        path.mkdir()
    elif body is not None:
        path.write_text(body)
    with pytest.raises(UserError, match=reason) as caught:
        one_file.materialise(path)
    assert "pip install -e" in caught.value.fix


def test_the_flag_names_it_and_takes_the_place_of_the_environment(file, tmp_path, monkeypatch, capsys):
    other = tmp_path / "flagged.py"
    other.write_text(BODY.format(name="of-flag"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plugins", "list", "--plugin", "flagged.py", "--json"], standalone_mode=False) == 0
    names = {e["name"] for e in json.loads(capsys.readouterr().out)["plugins"] if e["distribution"].endswith(".py")}
    assert names == {"of-flag"}
    assert cli.main(["plugins", "list", "--plugin", "nothing.py"], standalone_mode=False) == 2
    assert "nothing.py is not there" in capsys.readouterr().err


def test_the_project_file_may_list_several(file, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SPARSEFLEET_PLUGINS")
    (tmp_path / "second.py").write_text(BODY.format(name="of-second"))
    (tmp_path / "sparsefleet.toml").write_text('plugins = ["my-pruner.py", "./second.py"]\n')
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert cli.main(["plugins", "list", "--family", "pruner", "--json"], standalone_mode=False) == 0
    assert {"of-1", "of-second"} <= {e["name"] for e in json.loads(capsys.readouterr().out)["plugins"]}


@pytest.mark.parametrize("name", ["a=b.py", "#x.py", "[x].py", "ünï code.py", "__init__.py", f"{'x' * 240}.py"])
def test_odd_names_are_names(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text(BODY.format(name="of-odd"))
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert (entry("of-odd").state, entry("of-odd").distribution) == ("ok", name)
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    folder = unpacked(make_bundle(catalog(), ["pruner/of-odd"], store), store, tmp_path / "node")
    assert [dist.metadata["Name"] for dist in metadata.distributions(path=[str(folder)])] == [name]


@pytest.mark.parametrize("name", ["a\nb.py", "\udcff.py"])
def test_a_name_that_is_no_text_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("")
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(tmp_path / name))
    with pytest.raises(UserError, match="the name of plugin file"):
        catalog()


def test_a_copy_that_a_cleaner_has_visited_is_made_again(file):
    (found,) = one_file.activate()
    (points,) = found.folder.glob("*.dist-info/entry_points.txt")
    points.unlink()
    assert entry("of-1").state == "ok"


def test_a_second_process_that_comes_late_takes_nothing_away(file):
    (found,) = one_file.activate()
    before = (found.folder.stat().st_ino, sorted(found.folder.parent.iterdir()))
    one_file._write(found, file.read_bytes())
    assert (found.folder.stat().st_ino, sorted(found.folder.parent.iterdir())) == before


def test_a_name_that_would_be_two_is_refused_as_such(capsys):
    assert cli.main(["plugins", "list", "--plugin", f"a{os.pathsep}b.py"], standalone_mode=False) == 2
    assert "which separates files" in capsys.readouterr().err


def test_what_a_build_left_in_the_working_folder_is_no_second_plugin(file, monkeypatch):
    """``pip install .`` leaves an ``.egg-info`` beside the module, and Python looks into the working folder first."""
    info = file.parent / "sf_left.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sf-left\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsefleet]\nleft = left_behind\n")
    (file.parent / "left_behind.py").write_text(BODY.format(name="of-1"))
    monkeypatch.syspath_prepend(str(file.parent))
    assert entry("of-1").distribution == "my-pruner.py"
    installed = file.parent / "site-packages"
    installed.mkdir()
    info.rename(installed / info.name)
    (file.parent / "left_behind.py").rename(installed / "left_behind.py")
    monkeypatch.syspath_prepend(str(installed))
    assert {e.distribution for e in catalog().entries if e.name == "of-1"} == {"my-pruner.py", "sf-left"}


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("x = 1\nx = (\n", ["SyntaxError: '(' was never closed (my-pruner.py, line 2)"]),
        (
            "import neighbour_of_mine\n",
            ["my-pruner.py failed to import (ModuleNotFoundError", "cannot import its neighbours", "plugins new"],
        ),
        ("import sparsefleet\n", ["it implements no hook of sparsefleet"]),
    ],
)
def test_a_broken_file_is_named_as_its_author_knows_it(file, body, parts):
    from sparsefleet.errors import InvalidGrid
    from sparsefleet.grid.load import load_text

    file.write_text(body)
    found = next(e for e in catalog().entries if e.distribution == "my-pruner.py")
    assert found.state == "broken"
    assert all(part in found.reason for part in parts), found.reason
    assert found.module not in found.reason
    grid = "name: x\ndataset: digits\nmodel: mlp\noptimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\ndensity: 0.5\nmethod: {pruner: of-1}\n"
    with pytest.raises(InvalidGrid) as caught:
        load_text(grid, "g.yaml")
    assert "unknown pruner 'of-1'" in str(caught.value)
    assert f"my-pruner.py (broken: {found.reason[:20]}" in str(caught.value)


def test_a_file_with_a_taken_name_is_told_to_take_another(file):
    file.write_text(BODY.format(name="magnitude"))
    assert "give the one in my-pruner.py another name" in next(
        e.reason for e in catalog().entries if e.distribution == "my-pruner.py" and e.name == "magnitude"
    )
