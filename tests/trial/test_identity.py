"""Same key, same work; any change of what a result depends on is a new key."""

import pytest

from sparsefleet.errors import UserError
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial import identity
from sparsefleet.trial.identity import Keys, code_of, data_digest, plugins_of
from sparsefleet.trial.spec import PluginRef, TrialSpec


def spec(**overrides):
    base = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "params": {"hidden": [16]}},
        "optimizer": {"kind": "sgd", "lr": 0.1},
        "train": {"epochs": 1},
        "layer": {"name": "csr"},
        "density": 0.1,
        "method": {"rewirer": {"name": "set"}},
    }
    return TrialSpec(**{**base, **overrides})


def key(spec_, tmp_path, threads=1):
    return Keys(catalog(), tmp_path).key(spec_, threads, "cpu")


def test_the_key_is_a_function_of_what_the_result_depends_on(tmp_path, monkeypatch):
    first = key(spec(), tmp_path)
    assert key(spec(), tmp_path) == first
    assert key(spec(seed=1), tmp_path) != first
    assert key(spec(), tmp_path, threads=2) != first
    monkeypatch.setattr(identity, "core_digest", lambda: "changed")
    assert key(spec(), tmp_path) != first


def test_a_changed_plugin_changes_only_the_keys_of_trials_that_use_it(tmp_path, monkeypatch):
    import dataclasses

    with_set, static = spec(), spec(method={"rewirer": {"name": "static"}})
    before = key(with_set, tmp_path), key(static, tmp_path)
    changed = catalog()
    changed.entries = [dataclasses.replace(e, digest="changed") if e.name == "set" else e for e in changed.entries]
    keys = Keys(changed, tmp_path)
    assert keys.key(with_set, 1, "cpu") != before[0]
    assert keys.key(static, 1, "cpu") == before[1]


def test_the_code_names_every_plugin_that_computes():
    pruned = spec(method={"pruner": {"name": "magnitude"}})
    assert {f for f, _ in plugins_of(pruned)} == {"dataset", "model", "activation", "layer", "pruner"}
    assert {"core", "torch", "layer/csr", "layer/masked", "pruner/magnitude"} <= set(code_of(pruned, catalog()))


def test_data_are_hashed_by_content_and_remembered_by_size_and_time(tmp_path, monkeypatch):
    import gzip

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(gzip.compress(name.encode()))
    ref = PluginRef(name="mnist")
    first = data_digest(ref, catalog(), tmp_path)
    monkeypatch.setattr(Registry, "build", lambda *_: pytest.fail("an unchanged file is not read again"))
    assert data_digest(ref, catalog(), tmp_path) == first
    monkeypatch.undo()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    assert data_digest(ref, catalog(), tmp_path) != first


def test_missing_data_are_a_sentence_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="SPARSEFLEET_DATA"):
        data_digest(PluginRef(name="mnist"), catalog(), tmp_path)


def test_specs_with_and_without_spelled_out_defaults_are_the_same_trial():
    assert spec().spec_id == spec(init={"fan_in": "dense"}, validation=0.1).spec_id
    assert TrialSpec.model_validate(spec().to_json()) == spec()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"density": 1.0}, "needs a density below 1"),
        ({"method": {}}, "needs a method"),
        ({"method": {"rewirer": {"name": "set"}, "pruner": {"name": "magnitude"}}}, "not both"),
        ({"method": {"rewirer": {"name": "set"}, "distribution": "global"}}, "needs scores"),
        ({"density": float("nan")}, "finite"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        spec(**overrides)
