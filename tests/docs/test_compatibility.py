"""Nothing public goes or changes unannounced: the code is compared with the stored names of every minor release."""

import json
import sys
from pathlib import Path

import pytest

import sparsefleet
from sparsefleet.deprecated import DEPRECATED, Deprecation

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import public_api  # noqa: E402

STORED = sorted(public_api.FOLDER.glob("plugin-api-*.json"))
API = public_api.public_api()


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_nothing_of_a_release_is_gone_or_changed_unannounced(path):
    assert public_api.broken(json.loads(path.read_text())["names"], API, DEPRECATED, sparsefleet.__version__) == []


def test_this_release_is_stored():
    assert public_api.path_of(sparsefleet.__version__) in STORED


def test_it_holds_what_the_page_calls_public():
    for what in ("keep_best", "Pruner.score", "Pruner.needs_grad", "Rewirer.every", "Connections.flat", "Rng.at", "sparsefleet_measure"):
        assert what in API
    assert API["exit code of PluginError"] == 3
    assert API["testing.conformance"] == ["*plugins", "*", "except_for="]
    assert {"sf-record-1.state", "sf-spec-1.seed", "nn.CooLinear.product"} <= API.keys()


def lost(change, table=(), release="0.3.0"):
    now = {**API, **change}
    return public_api.broken(API, {name: value for name, value in now.items() if value is not None}, table, release)


def test_it_says_exactly_what_is_gone_or_changed():
    assert lost({"Pruner.needs_grad": None}) == ["Pruner.needs_grad is gone; it was False"]
    assert lost({"Rewirer.every": "50"}) == ["Rewirer.every was 100 and is 50"]
    assert lost({"Pruner.score": ["self", "conn", "rng="]}) == ["Pruner.score was (self, conn) and is (self, conn, rng=)"]
    assert lost({"exit code of PluginError": 4}) == ["exit code of PluginError was 3 and is 4"]
    assert lost({"Connections.select": ["self", "keep", "order"]}) == ["Connections.select was (self, keep) and is (self, keep, order)"]
    assert lost({"sparsefleet_measure": ["trial", "step"]}) == ["sparsefleet_measure was (trial, model, batch, step) and is (trial, step)"]


def test_adding_is_free():
    more = {"Pruner.new_fact": "False", "new_function": ["x"], "sparsefleet_measure": ["trial", "model", "batch", "step", "loss"]}
    assert lost({**more, "Connections.select": ["self", "keep", "order="]}) == []


def test_what_was_announced_may_go_when_it_is_due():
    table = (Deprecation("Pruner.needs_grad", "0.2", "0.3", "nothing"),)
    assert lost({"Pruner.needs_grad": None}, table, "0.2.5") == ["Pruner.needs_grad is gone; it was False"]
    assert lost({"Pruner.needs_grad": None}, table, "0.3.0") == []


def test_generating_drops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(public_api, "FOLDER", tmp_path)
    names = {**API, "Pruner.gone_fact": "False"}
    public_api.path_of(sparsefleet.__version__).write_text(json.dumps({"names": names}))
    with pytest.raises(SystemExit, match=r"Pruner\.gone_fact is gone; it was False"):
        public_api.render()
