"""A broken plugin is shown with its reason and stops nothing else."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from sparsefleet.distributions import forget
from sparsefleet.errors import PluginError, UnknownPlugin
from sparsefleet.registry import Registry, catalog

GOOD = """
    from sparsefleet import Pruner, hookimpl
    class Small(Pruner):
        name = "{name}"
        power: float = 2.0
        def score(self, conn):
            return conn.weight.abs() ** self.power
    @hookimpl
    def sparsefleet_pruners():
        return [Small]
"""


def entry(name):
    found = [e for e in catalog().entries if e.name == name]
    assert found, f"{name} is not listed"
    return found[0]


def test_every_first_party_plugin_is_usable():
    bad = [(e.name, e.reason) for e in catalog().entries if e.distribution == "sparsefleet" and e.state != "ok"]
    assert bad == []


def test_a_third_party_plugin_is_found_validated_and_built(plugin_distribution):
    plugin_distribution("third-party", {"tp_good": GOOD.format(name="tp-good")})
    found = entry("tp-good")
    assert (found.family, found.distribution, found.version, found.state) == ("pruner", "third-party", "1.0", "ok")
    full, problems = catalog().complete("pruner", "tp-good", {"power": 3})
    assert (full, problems) == ({"power": 3.0}, [])
    assert isinstance(full["power"], float)
    _, problems = catalog().complete("pruner", "tp-good", {"powr": 3})
    assert "did you mean 'power'" in problems[0][1]


@pytest.mark.parametrize(
    ("name", "params", "problem"),
    [
        ("fixed-fan-in", {"fan_in": 0}, "fan_in: 0 is less than the minimum of 1"),
        ("small-world", {"exponent": 100}, "exponent: 100.0 is greater than the maximum of 8"),
        ("fixed-fan-in", {"fan_in": "all"}, "fan_in: 'all' is not of type 'integer' or 'null'"),
        ("blocks", {"size": 0}, "size: 0 is less than the minimum of 1"),
    ],
)
def test_a_value_out_of_bounds_is_told_the_bound(name, params, problem):
    _, problems = catalog().complete("connectivity", name, params)
    assert [text for _, text in problems] == [f"connectivity {name!r}: {problem}"]


BROKEN = {
    "raises": ("raise RuntimeError('no license')", "no license"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "hard_exit": ("import os; os._exit(3)", "exit code 3 at import"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "signal 11 at import"),
    "typo": (
        "from sparsefleet import hookimpl\n@hookimpl\ndef sparsefleet_pruner():\n    return []\n",
        "did you mean 'sparsefleet_pruners'",
    ),
    "unmarked": ("def sparsefleet_pruners():\n    return []\n", "decorate it with @sparsefleet.hookimpl"),
    "arguments": ("from sparsefleet import hookimpl\n@hookimpl\ndef sparsefleet_pruners(nonsense):\n    return []\n", "nonsense"),
    "empty": ("x = 1\n", "no hook"),
    "syntax": ("def broken(:\n", "SyntaxError"),
    "nameless": (
        "from sparsefleet import Pruner, hookimpl\nclass P(Pruner):\n    pass\n@hookimpl\ndef sparsefleet_pruners():\n    return [P]\n",
        "has no name",
    ),
    "wrong_family": (
        "from sparsefleet import Pruner, hookimpl\nclass P(Pruner):\n    name = 'p'\n@hookimpl\ndef sparsefleet_rewirers():\n    return [P]\n",
        "which is a pruner",
    ),
}


def test_each_kind_of_broken_plugin_is_listed_with_its_reason_and_the_rest_works(plugin_distribution):
    for name, (source, _) in BROKEN.items():
        plugin_distribution(f"dist-{name}", {f"bp_{name}": source})
    plugin_distribution("dist-good", {"bp_good": GOOD.format(name="bp-good")})
    entries = {e.name: e for e in catalog().entries}
    for name, (_, reason) in BROKEN.items():
        assert entries[f"bp_{name}"].state == "broken"
        assert reason in entries[f"bp_{name}"].reason, (name, entries[f"bp_{name}"].reason)
    assert entries["bp-good"].state == "ok"
    assert entries["magnitude"].state == "ok"


def test_a_name_taken_twice_is_an_error_that_names_both_distributions(plugin_distribution):
    plugin_distribution("dist-one", {"cf_one": GOOD.format(name="cf-same")})
    plugin_distribution("dist-two", {"cf_two": GOOD.format(name="cf-same")})
    found = entry("cf-same")
    assert found.state == "conflict"
    assert "dist-one" in found.reason
    assert "dist-two" in found.reason
    with pytest.raises(PluginError) as caught:
        catalog().get("pruner", "cf-same")
    assert caught.value.exit_code == 3


def test_an_unknown_name_gets_the_close_match():
    with pytest.raises(UnknownPlugin, match="did you mean 'magnitude'") as caught:
        catalog().get("pruner", "magnitud")
    assert caught.value.exit_code == 2


def test_changed_code_changes_the_digest_and_is_described_anew(plugin_distribution):
    """Also when it is as long as before and written in the same second, which is all that Python's own bytecode cache looks at."""
    file = plugin_distribution("dist-change", {"ch_plugin": GOOD.format(name="ch-a")}) / "ch_plugin.py"
    written = file.stat().st_mtime_ns
    before = entry("ch-a").digest
    file.write_text(file.read_text().replace("ch-a", "ch-b"))
    os.utime(file, ns=(written, written + 1_000_000))
    from sparsefleet import code_digest

    code_digest.forget()
    assert entry("ch-b").digest != before


def test_a_warm_catalogue_imports_neither_torch_nor_plugins():
    catalog()
    code = "import json, sys; from sparsefleet.registry import catalog; catalog(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert "torch" not in modules
    assert not [m for m in modules if m.startswith("sparsefleet_plugins.")]


OBSERVER = """
    from sparsefleet import hookimpl
    @hookimpl
    def sparsefleet_measure(trial, model, batch, step):
        {body}
"""


def test_a_raising_observer_loses_nobody(plugin_distribution):
    plugin_distribution("dist-obs-bad", {"ob_bad": OBSERVER.format(body="raise ValueError('boom')")})
    plugin_distribution("dist-obs-good", {"ob_good": OBSERVER.format(body="return {'seen': float(step)}")})
    answers = dict(Registry(catalog()).observe("sparsefleet_measure", trial={}, model=None, batch=(), step=3))
    assert answers["dist-obs-good"] == {"seen": 3.0}
    assert isinstance(answers["dist-obs-bad"], ValueError)


METADATA = b"Metadata-Version: 2.1\nName: sf-odd\nVersion: 1.0\n"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"METADATA": METADATA, "entry_points.txt": b"[sparsefleet]\nx = not a module!\n"}, "cannot find the package"),
        ({"METADATA": METADATA, "entry_points.txt": b"[sparsefleet]\nx = \n"}, "cannot find the package"),
        (
            {"METADATA": METADATA, "entry_points.txt": b"[sparsefleet]\nx = textwrap\n", "direct_url.json": b"["},
            "direct_url.json of sf-odd",
        ),
        ({"METADATA": METADATA, "entry_points.txt": b"[sparsefleet]\nx\n"}, None),
        ({"METADATA": METADATA, "entry_points.txt": b"[sparsefleet]\nx = \xff\n"}, None),
        ({"METADATA": METADATA + b"Summary: \xff\n", "entry_points.txt": b"[sparsefleet]\nx = textwrap\n"}, None),
    ],
)
def test_metadata_that_no_tool_wrote_harm_nobody(plugin_distribution, monkeypatch, tmp_path, files, reason):
    folder = plugin_distribution("sf-odd", {})
    for name, body in files.items():
        (folder / "sf_odd-1.0.dist-info" / name).write_bytes(body)
    found = catalog()
    assert found.get("pruner", "magnitude").state == "ok"
    assert [reason in e.reason for e in found.entries if e.distribution == "sf-odd"] == ([True] if reason else [])
    (tmp_path / "allow.toml").write_text(f'[[allow]]\ndistribution = "sf-odd"\nversion = "1.0"\ndigest = "{"0" * 64}"\n')
    monkeypatch.setenv("SPARSEFLEET_ALLOW_LIST", str(tmp_path / "allow.toml"))
    assert {e.state for e in catalog().entries if e.distribution == "sf-odd"} == ({"altered"} if reason else set())


def test_a_broken_plugin_is_tried_again_when_something_is_installed(plugin_distribution, tmp_path):
    """What it misses may be a library of a library, which the versions of its own libraries do not tell."""
    plugin_distribution(
        "sf-lacks", {"tp_lacks": "import importlib\nimportlib.import_module('tp_later')\n" + textwrap.dedent(GOOD).format(name="lacks")}
    )
    assert "No module named 'tp_later'" in entry("tp_lacks").reason
    assert "No module named 'tp_later'" in entry("tp_lacks").reason
    (tmp_path / "site-sf-lacks" / "tp_later.py").write_text("")
    forget()
    assert entry("lacks").state == "ok"
