"""With an allow-list, what is not listed or was altered is shown and not imported."""

import subprocess
import sys

import pytest
from small_pruner import small_pruner

from sparsefleet.allow_list import allow_list
from sparsefleet.cli.app import cli
from sparsefleet.distributions import files_digest, forget, with_plugins
from sparsefleet.errors import UnknownPlugin, UserError
from sparsefleet.registry import Registry, catalog


def writes(canary):
    """Code that shows that it was imported."""
    return f"from pathlib import Path\nPath({str(canary)!r}).write_text('imported')"


@pytest.fixture
def listed(plugin_distribution, tmp_path, monkeypatch):
    """Two distributions with a canary each; ``sf-good`` is listed."""
    folders = {}
    for name in ("good", "other"):
        source = small_pruner(f"al-{name}", writes(tmp_path / f"canary-{name}"))
        folders[name] = plugin_distribution(f"sf-{name}", {f"al_{name}": source})
    (good,) = [dist for dist in with_plugins() if dist.metadata["Name"] == "sf-good"]
    path = tmp_path / "allow.toml"
    path.write_text(f'[[allow]]\ndistribution = "SF_good"\nversion = "1.0"\ndigest = "{files_digest(good)}"\n')
    monkeypatch.setenv("SPARSEFLEET_ALLOW_LIST", str(path))
    return folders


def state_of(distribution):
    forget()
    (found,) = [e for e in catalog().entries if e.distribution == distribution]
    return found


def test_only_what_is_listed_is_imported(listed, tmp_path):
    assert state_of("sf-good").state == "ok"
    refused = state_of("sf-other")
    assert (refused.state, refused.family, refused.version) == ("unlisted", "?", "1.0")
    assert "sf-other is not in the allow-list" in refused.reason
    assert not (tmp_path / "canary-other").exists()
    assert (tmp_path / "canary-good").exists()
    assert catalog().get("pruner", "magnitude").state == "ok"
    with pytest.raises(UnknownPlugin) as caught:
        Registry(catalog()).plugin_class("pruner", "al-other")
    assert "sf-other (unlisted)" in caught.value.cause
    assert not (tmp_path / "canary-other").exists()


def test_one_changed_byte_is_noticed(listed, tmp_path):
    file = listed["good"] / "al_good.py"
    file.write_bytes(file.read_bytes().replace(b"Magnitude", b"Magnitudf"))
    found = state_of("sf-good")
    assert found.state == "altered"
    assert "sf-good 1.0" in found.reason
    assert not (tmp_path / "canary-good").exists()


def test_another_entry_point_or_version_is_noticed(listed, tmp_path):
    info = listed["good"] / "sf_good-1.0.dist-info"
    points = info / "entry_points.txt"
    points.write_text(points.read_text() + "more = al_other\n")
    states = {e.state for e in catalog().entries if e.distribution == "sf-good"}
    assert states == {"altered"}
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sf-good\nVersion: 1.1\n")
    entries = [e for e in catalog().entries if e.distribution == "sf-good"]
    assert {e.state for e in entries} == {"unlisted"}
    assert "sf-good 1.1 is not in the allow-list" in entries[0].reason
    assert not (tmp_path / "canary-good").exists()


def test_a_trial_of_an_unlisted_plugin_is_refused_by_a_fresh_process(listed, tmp_path):
    code = "from sparsefleet.registry import Registry\nRegistry().plugin_class('pruner', 'al-other')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UnknownPlugin" in done.stderr
    assert not (tmp_path / "canary-other").exists()


def test_the_command_prints_what_the_list_takes(listed, tmp_path, monkeypatch, capsys):
    assert cli.main(["plugins", "allow", "sf-other"], standalone_mode=False) == 0
    with (tmp_path / "allow.toml").open("a") as file:
        file.write(capsys.readouterr().out)
    assert not (tmp_path / "canary-other").exists()
    assert state_of("sf-other").state == "ok"
    assert cli.main(["plugins", "allow", "sf-othr"], standalone_mode=False) == 2
    assert "did you mean 'sf-other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("allow = 3", "is not an allow-list"),
        ("[[alow]]\n", "is not an allow-list"),
        ('[[allow]]\ndistribution = "x"\n', "entry 1 must have distribution, version, digest"),
        ('[[allow]]\ndistribution = "x"\nversion = "1"\ndigest = "12"\n', "digest must be 64 hex digits"),
        ("]", "is not TOML"),
    ],
)
def test_a_list_that_cannot_be_right_lets_nothing_in(tmp_path, monkeypatch, text, problem):
    path = tmp_path / "allow.toml"
    path.write_text(text)
    monkeypatch.setenv("SPARSEFLEET_ALLOW_LIST", str(path))
    with pytest.raises(UserError, match=problem):
        catalog()


def test_a_list_that_is_not_there_lets_nothing_in(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEFLEET_ALLOW_LIST", str(tmp_path / "no.toml"))
    with pytest.raises(UserError, match=r"no\.toml cannot be read"):
        allow_list()


def test_our_own_distribution_need_not_be_listed_and_is_checked_if_it_is(tmp_path, monkeypatch):
    path = tmp_path / "allow.toml"
    path.write_text("")
    monkeypatch.setenv("SPARSEFLEET_ALLOW_LIST", str(path))
    assert catalog().get("pruner", "magnitude").state == "ok"
    path.write_text(f'[[allow]]\ndistribution = "sparsefleet"\nversion = "0.1.0"\ndigest = "{"0" * 64}"\n')
    with pytest.raises(UnknownPlugin):
        catalog().get("pruner", "l-magnitude")
    assert {e.state for e in catalog().entries if e.distribution == "sparsefleet"} == {"altered"}


def test_calling_itself_sparsefleet_opens_no_door(listed, plugin_distribution, tmp_path):
    source = small_pruner("al-own", writes(tmp_path / "canary-own"))
    plugin_distribution("sparsefleet", {"al_own": source})
    assert state_of("sparsefleet").state == "unlisted"
    assert not (tmp_path / "canary-own").exists()
