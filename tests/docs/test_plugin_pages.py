"""Every plugin has a page whose grid runs, and every method says its rule, its paper and where it is compared with a reference."""

import json
import re
import sys
from pathlib import Path

import pytest

from sparsefleet.errors import InvalidGrid
from sparsefleet.grid.expand import Skip, walk
from sparsefleet.grid.load import load_text
from sparsefleet.registry import catalog

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import plugin_pages  # noqa: E402

ENTRIES = {f"{e.family}-{e.name}": e for e in plugin_pages.entries()}
PAGES = {name: (ROOT / "docs" / "plugins" / f"{name}.md").read_text() for name in ENTRIES}
HERE_NOT = ("is not installed", "runs on cuda")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_the_grid_of_a_page_can_run(name):
    snippet = re.search(r"```yaml\n(.*?)```", PAGES[name], re.DOTALL)
    assert snippet is not None
    if name == "connectivity-user":  # a file of the reader's own
        with pytest.raises(InvalidGrid, match="my-file is not there"):
            load_text(snippet[1], "page.yaml", catalog=catalog())
        return
    found = list(walk(load_text(snippet[1], "page.yaml", catalog=catalog()), catalog()))
    skips = [item.reason for item in found if isinstance(item, Skip)]
    assert [reason for reason in skips if not any(text in reason for text in HERE_NOT)] == []
    assert skips or ENTRIES[name].facts.get("chooses") or any(ENTRIES[name].name in repr(item.spec.to_json()) for item in found)


@pytest.mark.parametrize("name", sorted(n for n, e in ENTRIES.items() if e.family in ("pruner", "rewirer", "activation")))
def test_a_method_tells_its_rule_and_its_paper(name):
    assert "**Rule.** " in PAGES[name]
    assert "**Paper.** " in PAGES[name]
    assert "## What it cannot do" in PAGES[name]


@pytest.mark.parametrize("name", sorted(n for n, e in ENTRIES.items() if e.family in ("pruner", "rewirer") and e.name != "static"))
def test_the_reference_test_of_a_method_names_it(name):
    entry = ENTRIES[name]
    test = (ROOT / plugin_pages.reference_of(entry)).read_text()
    assert entry.class_name in test or entry.name in test
    assert any(word in test for word in ("float64", "double", "numpy", "by_hand"))  # by_hand.py is the shared reference


def test_a_method_that_runs_on_a_layer_is_not_skipped_there_and_the_others_say_why():
    runs = plugin_pages.layers_of(ENTRIES["rewirer-snfs"])
    assert runs["masked"] is None
    assert "values at absent sites" in runs["csr"]
    assert plugin_pages.layers_of(ENTRIES["rewirer-set"])["fixed-fan-in"] is None


def test_the_cost_of_an_update_is_told_in_whole_steps(tmp_path, monkeypatch):
    """The benchmark spreads surgery over the steps to the next update; the page tells one update, and keeps what every step costs apart."""
    figures = [
        ("itop-set/csr", "surgery over 1500 steps: itop-set/csr", "% of a step", 0.2),
        ("itop-set/csr", "choosing: itop-set/csr", "steps", 10.0),
        ("deep-r/csr", "surgery of every step: deep-r/csr", "% of a step", 150.0),
        ("deep-r/csr", "choosing: deep-r/csr", "steps", 0.5),
        ("deep-r/csr", "at every step: deep-r/csr", "steps", 0.25),
        ("snip/masked", "choosing: snip/masked", "steps", 4.0),
        ("snip/masked", "surgery: snip/masked", "steps", 2.0),
    ]
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    found = {"figures": [dict(zip(("id", "what", "unit", "value"), row, strict=True)) for row in figures]}
    (results / "updates-0.json").write_text(json.dumps(found))
    monkeypatch.setattr(plugin_pages, "ROOT", tmp_path)
    assert plugin_pages._costs() == {
        "itop-set": {"csr": "10 choosing + 3 surgery"},
        "deep-r": {"csr": "0.5 choosing + 1.5 surgery + 0.25 at every step"},
        "snip": {"masked": "4 choosing + 2 surgery"},
    }


@pytest.mark.parametrize("name", sorted(n for n, e in ENTRIES.items() if e.family in ("pruner", "rewirer")))
def test_a_page_claims_dense_storage_only_where_the_table_of_layers_says_the_same(name):
    runs = set(re.findall(r"^\| (\S+) \| yes \|$", PAGES[name], re.MULTILINE))
    assert runs
    assert ("dense storage only" in PAGES[name]) == (runs <= {"masked", "quantised"})
