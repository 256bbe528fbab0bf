"""Whole trials on tiny data: batch norms, tokens and augmented pictures, dense and masked, interrupted and resumed to the last bit."""

import json

import pytest
import torch
from PIL import Image
from two_parts import assert_same_network, in_two_parts

from sparsefleet import Rng
from sparsefleet.registry import Registry
from sparsefleet.trial import files
from sparsefleet.trial.build import load_network
from sparsefleet.trial.data import load_splits
from sparsefleet.trial.objective import evaluate
from sparsefleet.trial.run import run_trial

MASKED = {"layer": {"name": "masked"}, "density": 0.4, "method": {"rewirer": {"name": "set", "params": {"every": 3}}}}
TRAIN = {"epochs": 2, "batch_size": 16, "max_steps": 8}


def write_sentences(root):
    """The class of a sentence is one of its words; the others are noise, and sentences differ in length."""
    draw = Rng("sentences")
    for name, telling in (("neg", "awful"), ("pos", "lovely")):
        lines = [" ".join([*(f"w{int(word)}" for word in draw.integers(int(draw.integers(1, 5)), 30)), telling]) for _ in range(60)]
        (root / f"rt-polarity.{name}").write_text("\n".join(lines) + "\n")


def write_pictures(root):
    for split, n in (("train", 24), ("test", 6)):
        for label, name in enumerate(("dark", "light")):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (12, 12), (40 + 120 * label + i,) * 3).save(root / "images" / split / name / f"{i}.png")


CASES = {
    "wide-resnet": {"model": {"name": "wide-resnet", "params": {"depth": 10, "width": 0.25}}, "train": {**TRAIN, "epochs": 1}},
    "sentiment-lstm": {
        "dataset": {"name": "rt-polarity", "params": {"length": 8, "vocabulary": 40}},
        "model": {"name": "sentiment-lstm", "params": {"embed_dim": 6, "hidden": 8}},
        "optimizer": {"kind": "adam", "lr": 0.02},
        "train": {**TRAIN, "epochs": 6, "max_steps": 40},
    },
    "small-cnn": {
        "dataset": {"name": "image-folder", "params": {"size": 12, "classes": 2}},
        "model": {"name": "small-cnn", "params": {"channels": [4, 6]}},
        "activation": {"name": "k-winners-2d", "params": {"scope": "local"}},
        "train": {**TRAIN, "epochs": 3, "augment": True},
    },
}


@pytest.fixture
def request_of(tmp_path, digits_request):
    write_sentences(tmp_path)
    write_pictures(tmp_path)
    return lambda name, workdir, sparse=True, **more: digits_request(workdir, **CASES[name], **(MASKED if sparse else {}), **more)


def record_of(request):
    return json.loads((request.workdir / files.RECORD).read_text())


@pytest.mark.parametrize("sparse", [True, False], ids=["masked", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_a_saved_network_scores_what_its_record_says(request_of, name, sparse):
    """Batch norms and duty cycles come back with their statistics, tokens stay tokens, and no answer depends on the others of its batch."""
    request = request_of(name, "whole", sparse)
    record = run_trial(request)
    assert record.state == "SUCCEEDED", record.reason
    registry = Registry()
    network = load_network(request.spec, request.workdir / files.MODEL, request.workdir if sparse else None, registry=registry)
    dataset = registry.build("dataset", request.spec.dataset)
    test = load_splits(dataset, request, torch.float32, registry.catalog).test
    assert evaluate(network.module, test, dataset.info).metric == record.accuracy.test
    network.module.eval()
    with torch.no_grad():
        alone = torch.cat([network.module(x[None]) for x in test.x[:5]])
        assert torch.allclose(alone, network.module(test.x)[:5], atol=1e-5)


def test_the_lstm_learns_to_look_at_the_last_word(request_of):
    """It stands at another place in every sentence, and padding follows."""
    record = run_trial(request_of("sentiment-lstm", "learns", sparse=False))
    assert record.accuracy.n_test == 12
    assert record.accuracy.test == 1.0


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_trial_is_bit_equal(request_of, monkeypatch, name):
    whole = request_of(name, "whole")
    assert run_trial(whole).state == "SUCCEEDED"
    parts = request_of(name, "parts", checkpoint_every_s=1e-9)
    assert in_two_parts(monkeypatch, parts, 5).state == "SUCCEEDED"
    assert_same_network(parts, whole)
    assert record_of(parts)["curves"] == record_of(whole)["curves"]


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer_starts_from_its_twins_weights(request_of, name):
    twin = request_of(name, "twin", sparse=False)
    assert run_trial(twin).state == "SUCCEEDED"
    method = {"pruner": {"name": "magnitude"}, "schedule": {"kind": "one-shot"}}
    record = run_trial(request_of(name, "pruned", sparse=False, start=twin.workdir, density=0.5, layer={"name": "masked"}, method=method))
    assert record.state == "SUCCEEDED", record.reason
