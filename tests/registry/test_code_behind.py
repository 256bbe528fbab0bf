"""Whatever runs with a plugin changes its key and its digest in an allow-list, however it gets there."""

import py_compile
from importlib.machinery import EXTENSION_SUFFIXES

import pytest
from small_pruner import small_pruner

from sparsefleet.distributions import digest_of, files_digest, files_of, forget, libraries_of, with_plugins
from sparsefleet.registry import catalog


@pytest.fixture
def package(plugin_distribution):
    """A function that installs the package ``cb_pkg`` with this code and these files more; its folder."""

    def install(code, **files):
        folder = plugin_distribution("sf-behind", {})
        inside = folder / "cb_pkg"
        for name, text in {"__init__.py": small_pruner("cb-small", code), **files}.items():
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            (inside / name).write_text(text)
        (folder / "sf_behind-1.0.dist-info" / "entry_points.txt").write_text("[sparsefleet]\npoint = cb_pkg\n")
        forget()
        return inside

    return install


def told(module="cb_pkg"):
    """(digest in the key, digest in an allow-list), looked at anew."""
    forget()
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    return digest_of(dist, module), files_digest(dist)


def changed(path, text="X = 2\n"):
    """Which of the two digests follow a change of the file."""
    before = told()
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    return [old != new for old, new in zip(before, told(), strict=True)]


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from . import inner", "inner.py"),
        ("import typing\nif not typing.TYPE_CHECKING:\n    from . import inner", "inner.py"),
        ("import importlib\ninner = importlib.import_module('.inner', __package__)", "inner.py"),
        ("inner = __import__('cb_pkg.inner')", "inner.py"),
        ("from .sub import *", "sub/inner.py"),
        ("def f():\n    from .sub.deep import inner", "sub/deep.py"),
        ("from pathlib import Path\nX = Path(__file__).with_name('table.csv').read_text()", "table.csv"),
    ],
)
def test_what_runs_or_is_read_changes_the_key(package, code, file):
    inside = package(code, **{"sub/__init__.py": "__all__ = ['inner']\n", file: "X = 1\n"})
    assert changed(inside / file) == [True, True]


def test_what_is_not_imported_does_not(package):
    inside = package(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import other", **{"other.py": "", ".other.py.swp": ""}
    )
    assert changed(inside / "other.py") == [False, True]
    assert changed(inside / ".other.py.swp") == [False, True]


@pytest.mark.parametrize("name", [f"native{EXTENSION_SUFFIXES[0]}", f"native{EXTENSION_SUFFIXES[-1]}", "native.pyc"])
def test_what_is_compiled_counts(package, name):
    inside = package("from . import native")
    (inside / name).write_bytes(b"\x00\x01")
    assert changed(inside / name, b"\x00\x02") == [True, True]


def test_a_published_build_counts_by_its_version(package):
    inside = package("from . import native")
    (inside.parent / "sf_behind-1.0.dist-info" / "INSTALLER").write_text("pip\n")
    name = f"native{EXTENSION_SUFFIXES[0]}"
    (inside / name).write_bytes(b"\x00\x01")
    assert changed(inside / name, b"\x00\x02") == [False, True]  # another machine's build of the same release has other bytes


@pytest.mark.parametrize("by", ["RECORD", "top_level.txt"])
def test_a_compiled_module_beside_the_package_counts(plugin_distribution, by):
    folder = plugin_distribution("sf-behind", {"cb_pkg": small_pruner("cb-small", "import _cb_native")})
    native = folder / f"_cb_native{EXTENSION_SUFFIXES[0]}"
    native.write_bytes(b"\x7fELF\0\1")
    text = {"RECORD": f"{native.name},,\ncb_pkg.py,,\n", "top_level.txt": "_cb_native\ncb_pkg\n"}[by]
    (folder / "sf_behind-1.0.dist-info" / by).write_text(text)
    assert changed(native, b"\x7fELF\0\2") == [True, True]
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    assert libraries_of(dist, "cb_pkg") == {}


@pytest.mark.parametrize(("link", "code"), [("inner.py", "from .inner import X"), ("shared", "from .shared.inner import X")])
def test_linked_sources_count_and_linked_data_do_not(package, tmp_path, link, code):
    inside = package(code)
    (tmp_path / "shared").mkdir()
    target = tmp_path / "shared" / "inner.py"
    target.write_text("X = 1\n")
    (inside / link).symlink_to(target if link.endswith(".py") else target.parent)
    (inside / "loop").symlink_to(inside)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "huge.bin").write_text("")
    (inside / "data").symlink_to(tmp_path / "data")
    assert changed(target) == [True, True]
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    assert not [name for name in files_of(dist) if "huge" in name or "loop" in name]


def test_bytecode_without_its_source_counts(package):
    inside = package("from . import inner", **{"inner.py": "X = 1\n"})
    py_compile.compile(str(inside / "inner.py"), cfile=str(inside / "inner.pyc"))
    (inside / "inner.py").unlink()
    assert catalog().get("pruner", "cb-small").state == "ok"
    assert changed(inside / "inner.pyc", b"other") == [True, True]


def test_a_library_whose_version_says_nothing_is_told_with_its_digest(plugin_distribution, tmp_path, monkeypatch):
    """One that lies on the search path, and one that is installed from a folder."""
    (tmp_path / "lib").mkdir()
    for name in ("cb_loose", "cb_lab"):
        (tmp_path / "lib" / f"{name}.py").write_text("X = 1\n")
    info = tmp_path / "lib" / "cb_lab-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cb_lab\nVersion: 0.1\n")
    (info / "direct_url.json").write_text('{"url": "file:///home/me/lab", "dir_info": {"editable": true}}')
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    plugin_distribution("sf-behind", {"cb_pkg": small_pruner("cb-small", "import cb_loose, cb_lab, numpy")})
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    before = libraries_of(dist, "cb_pkg")
    assert before["cb_lab"].startswith("0.1+")
    for name in ("cb_loose", "cb_lab"):
        (tmp_path / "lib" / f"{name}.py").write_text("X = 2\n")
    forget()
    after = libraries_of(dist, "cb_pkg")
    assert [name for name in before if before[name] != after[name]] == ["cb_lab", "cb_loose"]


def test_a_chain_of_own_packages_counts_to_its_end(plugin_distribution):
    modules = {"cb_pkg": small_pruner("cb-small", "import cb_a"), "cb_a": "import cb_b\n", "cb_b": "import sklearn\n"}
    folder = plugin_distribution("sf-behind", modules)
    info = folder / "sf_behind-1.0.dist-info"
    (info / "entry_points.txt").write_text("[sparsefleet]\npoint = cb_pkg\n")
    (info / "top_level.txt").write_text("\n".join(modules))
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    assert "scikit-learn" in libraries_of(dist, "cb_pkg")
    assert changed(folder / "cb_b.py") == [True, True]


def test_an_environment_inside_the_project_is_not_the_plugin_s(package, monkeypatch):
    """A ``.venv`` beside the source, as everybody makes: its libraries are libraries, and a very deep expression in one harms nobody."""
    inside = package("import cb_library\nfrom cb_sibling import X")
    project = inside.parent
    (project / "cb_sibling.py").write_text("X = 1\n")
    site = project / ".venv" / "lib" / "python3.11" / "site-packages"
    (site / "cb_library").mkdir(parents=True)
    (site / "cb_library" / "__init__.py").write_text("X = " + "+".join(["1"] * 1500) + "\n")
    (project / "sf_behind-1.0.dist-info" / "direct_url.json").write_text(
        f'{{"url": "{project.as_uri()}", "dir_info": {{"editable": true}}}}'
    )
    monkeypatch.syspath_prepend(str(site))
    told()
    (dist,) = [d for d in with_plugins() if d.metadata["Name"] == "sf-behind"]
    assert sorted(files_of(dist)) == ["cb_pkg/__init__.py", "cb_sibling.py"]
    assert set(libraries_of(dist, "cb_pkg")) == {"cb_library"}
    assert catalog().get("pruner", "cb-small").state == "ok"
