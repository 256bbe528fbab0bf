"""Fixtures shared by all tests: a home, a cache and a data root of their own, and small plugin distributions."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's home; the catalogue's cache is shared by the session, so that it is made once."""
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("SPARSEFLEET_CACHE", os.environ["SPARSEFLEET_TEST_CACHE"])
    monkeypatch.setenv("SPARSEFLEET_PICTURES", "off")  # nothing is drawn in the background of the next test


def pytest_configure(config):
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # started in the background of a shell: our Ctrl-C tests' children would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "SPARSEFLEET_TEST_CACHE" not in os.environ:
        import tempfile

        os.environ["SPARSEFLEET_TEST_CACHE"] = tempfile.mkdtemp(prefix="sparsefleet-test-cache-")


_ALONE = ("benchmarks/", "cli/test_cli_measure", "cli/test_cli_process", "docs/", "fleet/", "measure/", "nn/test_auto", "ops/", "track/")
"""Where tests take times, count processes or start servers: nothing may run beside the slow ones of these."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks ``alone`` by place, before pytest selects by marks."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix() if item.path.is_relative_to(Path(__file__).parent) else ""
        if place.startswith(_ALONE) or item.get_closest_marker("browser"):
            item.add_marker("alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that is skipped for want of something that ``SPARSEFLEET_REQUIRE`` names fails instead."""
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole module."""
    return _required((yield))


def _required(report):
    """``report``, failed if it skipped with a reason that holds a word of ``SPARSEFLEET_REQUIRE``, e.g. ``kernels,torch-sparse``."""
    words = [word for word in os.environ.get("SPARSEFLEET_REQUIRE", "").split(",") if word]
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        lacking = [word for word in words if word in reason.replace("_", "-")]
        if lacking:
            report.outcome, report.longrepr = "failed", f"SPARSEFLEET_REQUIRE asks for {', '.join(lacking)}: {reason}"
    return report


@pytest.fixture
def plugin_distribution(tmp_path, monkeypatch):
    """Installs modules as a distribution of their own: ``plugin_distribution("dist", {"module": source})`` → its folder."""

    from sparsefleet.distributions import forget

    def install(name: str, modules: dict[str, str], version: str = "1.0") -> Path:
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "\n".join(f"{module} = {module}" for module in modules)
        (info / "entry_points.txt").write_text(f"[sparsefleet]\n{lines}\n")
        monkeypatch.syspath_prepend(str(folder))
        forget()
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        return folder

    yield install
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]
    forget()


@pytest.fixture
def digits_request(tmp_path):
    """A function that makes a trial request on the digits data from overrides of a small spec."""
    from sparsefleet.trial.request import TrialRequest
    from sparsefleet.trial.spec import TrialSpec

    base = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [32, 24]}},
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        "train": {"epochs": 2, "batch_size": 64},
    }

    def make(workdir: str = "work", checkpoint_every_s: float = 1e9, start=None, **overrides):
        if start is not None:
            taken = json.loads((start / "spec.json").read_text())
            given = {"trial": TrialSpec(**taken).spec_id, "row": TrialSpec(**{**taken, "seed": 0}).spec_id}
            overrides["start"] = {**given, "gives": overrides.pop("gives", "weights")}
        spec = TrialSpec(**{**base, **overrides})
        return TrialRequest(
            spec=spec,
            trial_key=f"key-{spec.spec_id}",
            workdir=tmp_path / workdir,
            data_root=tmp_path,
            checkpoint_every_s=checkpoint_every_s,
            start=start,
        )

    return make
