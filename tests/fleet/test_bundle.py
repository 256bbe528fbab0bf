"""Plugins that no other machine can fetch are shipped as one file, with what Python needs to find their entry points."""

import os
import subprocess
import sys
import zipfile

import pytest
from small_pruner import small_pruner

from sparsefleet.distributions import digest_of, forget, libraries_of, with_plugins
from sparsefleet.errors import IntegrityError, PluginError, UserError
from sparsefleet.fleet import bundle
from sparsefleet.fleet.bundle import import_path, make_bundle, unpacked
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.registry import catalog


@pytest.fixture
def store(tmp_path):
    return ArtifactStore((tmp_path / "artifacts").as_uri())


@pytest.fixture
def local(plugin_distribution):
    return plugin_distribution("sf-local", {"bu_local": small_pruner("bu-local")})


def named(name):
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == name]
    return dist


def test_another_process_finds_and_digests_the_plugin_in_the_bundle_alone(local, store, tmp_path):
    told = make_bundle(catalog(), ["pruner/bu-local", "pruner/magnitude"], store)
    assert told["distributions"] == [["sf-local", "1.0"]]
    folder = unpacked(told, store, tmp_path / "node")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".plugins.zip") == ["bu_local.py", "sf_local-1.0.dist-info"]
    places = [place for place in sys.path if place != str(local)]
    code = "from sparsefleet.registry import catalog; e = catalog().get('pruner', 'bu-local'); print(e.distribution, e.version, e.digest)"
    env = {**os.environ, "PYTHONPATH": import_path(folder, places)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["sf-local", "1.0", catalog().get("pruner", "bu-local").digest]


def test_the_same_files_are_the_same_bundle_and_others_another(local, store):
    first = make_bundle(catalog(), ["pruner/bu-local"], store)
    os.utime(local / "bu_local.py", (1, 1))
    assert make_bundle(catalog(), ["pruner/bu-local"], store) == first
    (local / "bu_local.py").write_text((local / "bu_local.py").read_text() + "\n")
    assert make_bundle(catalog(), ["pruner/bu-local"], store)["sha256"] != first["sha256"]


def test_what_an_index_has_stays_where_it_is(local, store):
    (local / "sf_local-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    assert make_bundle(catalog(), ["pruner/bu-local"], store) is None
    (local / "sf_local-1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///home/me/sf-local", "dir_info": {}}')
    assert make_bundle(catalog(), ["pruner/bu-local"], store) is not None
    (local / "sf_local-1.0.dist-info" / "direct_url.json").write_text('{"url": "git+https://example.org/x", "vcs_info": {}}')
    assert make_bundle(catalog(), ["pruner/bu-local"], store) is None


def test_what_the_sweep_does_not_use_stays_where_it_is_and_observers_come_along(local, store, plugin_distribution):
    assert make_bundle(catalog(), ["pruner/magnitude"], store) is None
    observer = "from sparsefleet import hookimpl\n@hookimpl\ndef sparsefleet_after_trial(trial, result):\n    print(trial)\n"
    plugin_distribution("sf-observer", {"bu_observer": observer})
    assert make_bundle(catalog(), ["pruner/magnitude"], store)["distributions"] == [["sf-observer", "1.0"]]


def test_a_package_comes_with_its_data_and_without_bytecode(tmp_path, store, plugin_distribution):
    folder = plugin_distribution("sf-package", {"bu_point": small_pruner("bu-package", "import bu_package.inner")})
    package = folder / "bu_package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("X = 1\n")
    (package / "table.csv").write_text("1,2\n")
    (package / "__pycache__" / "inner.cpython-311.pyc").write_bytes(b"x")
    info = folder / "sf_package-1.0.dist-info"
    (info / "top_level.txt").write_text("bu_package\nbu_point\n")
    found = unpacked(make_bundle(catalog(), ["pruner/bu-package"], store), store, tmp_path / "node")
    assert (found / "bu_package" / "table.csv").read_text() == "1,2\n"
    assert not list(found.rglob("*.pyc"))
    before = digest_of(named("sf-package"), "bu_point")
    (package / "inner.py").write_text("X = 2\n")
    forget()
    assert digest_of(named("sf-package"), "bu_point") != before


def test_the_versions_of_imported_libraries_are_told_and_no_others(plugin_distribution):
    imports = (
        "import json, numpy as np, pydantic, torch, no_such_library_here\nfrom sklearn import datasets\nfrom sparsefleet import Update"
    )
    plugin_distribution(
        "sf-libs",
        {
            "bu_libs": small_pruner(
                name="bu-libs", code=f"try:\n    {imports.replace(chr(10), chr(10) + '    ')}\nexcept ImportError:\n    np = None"
            )
        },
    )
    found = libraries_of(named("sf-libs"), "bu_libs")
    assert set(found) == {"numpy", "scikit-learn", "no_such_library_here"}
    assert found["no_such_library_here"] == "absent"
    assert found["numpy"][0].isdigit()


def test_a_bundle_that_was_altered_in_the_store_is_refused(local, store, tmp_path):
    told = make_bundle(catalog(), ["pruner/bu-local"], store)
    (stored,) = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError):
        unpacked(told, store, tmp_path / "node")
    assert not list((tmp_path / "node" / "bundles").iterdir())


def test_one_that_is_too_large_is_refused_by_name(local, store, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="the files of sf-local are larger"):
        make_bundle(catalog(), ["pruner/bu-local"], store)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_text("X = 1\n")])
def test_what_a_cleaner_or_an_editor_did_to_the_folder_is_undone(local, store, tmp_path, harm):
    told = make_bundle(catalog(), ["pruner/bu-local"], store)
    folder = unpacked(told, store, tmp_path / "node")
    before = (folder / "bu_local.py").stat().st_mtime_ns
    assert (unpacked(told, store, tmp_path / "node") / "bu_local.py").stat().st_mtime_ns == before
    harm(folder / "bu_local.py")
    assert unpacked(told, store, tmp_path / "node") == folder
    assert (folder / "bu_local.py").read_bytes() == (local / "bu_local.py").read_bytes()


def test_nothing_in_it_takes_another_modules_place(local, store, tmp_path, plugin_distribution):
    folder = plugin_distribution("sf-shadow", {"bu_shadow": small_pruner("bu-shadow")})
    (folder / "sitecustomize.py").write_text("print('runs before any allow-list is read')\n")
    (folder / "sf_shadow-1.0.dist-info" / "top_level.txt").write_text("bu_shadow\nsitecustomize\n")
    with pytest.raises(PluginError, match=r"brings sitecustomize\.py"):
        make_bundle(catalog(), ["pruner/bu-shadow"], store)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("sitecustomize.py", "print('runs')")
    with pytest.raises(PluginError, match=r"brings sitecustomize\.py"):
        unpacked({"sha256": store.put(tmp_path / "evil.zip").sha256}, store, tmp_path / "node")
    assert not list((tmp_path / "node" / "bundles").iterdir())


def test_an_archive_that_agrees_with_its_folder_but_not_with_its_digest_is_not_used(local, store, tmp_path):
    told = make_bundle(catalog(), ["pruner/bu-local"], store)
    folder = tmp_path / "node" / "bundles" / told["sha256"][:32]
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / ".plugins.zip", "w") as planted:
        planted.writestr("bu_local.py", "X = 1\n")
    (folder / "bu_local.py").write_text("X = 1\n")
    assert (unpacked(told, store, tmp_path / "node") / "bu_local.py").read_bytes() == (local / "bu_local.py").read_bytes()
