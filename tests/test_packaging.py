"""The wheel holds everything that the checkout has, and nothing of it lies anywhere but under the two packages."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"sparsefleet": ROOT / "sparsefleet", "sparsefleet_plugins": ROOT / "plugins"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout: building in place would leave files there, and take stale ones in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("sparsefleet", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(copy / "out"),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_source_file_is_in_the_wheel(wheel):
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed - {"sparsefleet/ops/_kernels.so"} == expected
    assert {"sparsefleet/grids/quickstart.yaml", "sparsefleet/py.typed", "sparsefleet_plugins/pruning/magnitude.py"} <= packed


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="kernels: no C compiler")
def test_the_kernels_are_built_where_a_compiler_is(wheel):
    assert "sparsefleet/ops/_kernels.so" in wheel.namelist()


def test_entry_points_name_modules_of_the_wheel(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(name).decode())
    assert dict(parser["console_scripts"]) == {"sparsefleet": "sparsefleet.cli:main"}
    modules = list(parser["sparsefleet"].values())
    assert [m for m in modules if f"{m.replace('.', '/')}.py" not in wheel.namelist()] == []


def test_every_plugin_module_is_an_entry_point(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    declared = wheel.read(name).decode()
    hooked = [p for p in (ROOT / "plugins").rglob("*.py") if "@hookimpl" in p.read_text()]
    named = {p: ".".join(("sparsefleet_plugins", *p.relative_to(ROOT / "plugins").with_suffix("").parts)) for p in hooked}
    assert [module for module in named.values() if f"= {module}\n" not in declared + "\n"] == []


def test_the_licence_travels_with_the_wheel(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("/LICENSE"))
    assert b"Apache License" in wheel.read(name)


def test_pyproject_says_how_to_build_and_nothing_else():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[build-system]"]


def test_every_dependency_has_a_tested_version():
    """constraints.txt names each direct dependency, and the version fits the range."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    wrong = []
    for wanted in (Requirement(line) for line in listed.splitlines() if line.strip()):
        versions = [str(next(iter(p.specifier)).version) for p in pins if canonicalize_name(p.name) == canonicalize_name(wanted.name)]
        if not versions or not all(wanted.specifier.contains(v) for v in versions):
            wrong.append(f"{wanted}: {versions}")
    assert wrong == []
