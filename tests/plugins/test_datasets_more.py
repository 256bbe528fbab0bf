"""Sentences and synthetic tasks: tokens by hand, the split, the vocabulary of the training split alone."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from sparsefleet_plugins.datasets.rt_polarity import RtPolarity
from sparsefleet_plugins.datasets.two_feature_sum import TwoFeatureSum

from sparsefleet import UserError
from sparsefleet.registry import Registry, catalog

TEST_DATA = os.environ.get("SPARSEFLEET_TEST_DATA")
NOWHERE = Path("nowhere")


def write_sentences(root, negative, positive, encoding="utf-8"):
    root.mkdir(parents=True, exist_ok=True)
    (root / "rt-polarity.neg").write_bytes("\n".join(negative).encode(encoding) + b"\n")
    (root / "rt-polarity.pos").write_bytes("\n".join(positive).encode(encoding) + b"\n")


NEGATIVE = ["bad bad film"] * 9 + ["unseen bad"]
POSITIVE = ["Good film"] * 9 + ["film unseen unseen unseen"]


def test_tokens_by_hand(tmp_path):
    """18 times film, 18 times bad, 9 times good; ``unseen`` occurs in the test split alone."""
    write_sentences(tmp_path / "rt-polarity", NEGATIVE, POSITIVE)
    plugin = RtPolarity(length=4, vocabulary=5)
    train, test = plugin.load(tmp_path, "train"), plugin.load(tmp_path, "test")
    bad, film, good = 2, 3, 4  # equal counts by spelling
    assert train.x.dtype == train.y.dtype == torch.int64
    assert train.x.tolist() == [[bad, bad, film, 0]] * 9 + [[good, film, 0, 0]] * 9
    assert train.y.tolist() == [0] * 9 + [1] * 9
    assert test.x.tolist() == [[1, bad, 0, 0], [film, 1, 1, 1]]
    assert test.y.tolist() == [0, 1]


def test_a_small_vocabulary_keeps_the_frequent_and_a_short_length_the_beginning(tmp_path):
    write_sentences(tmp_path, NEGATIVE, POSITIVE)  # in the root itself
    train = RtPolarity(length=2, vocabulary=4).load(tmp_path, "train")
    assert train.x.tolist() == [[2, 2]] * 9 + [[1, 3]] * 9


def test_the_split_is_balanced_and_does_not_depend_on_the_other_class(tmp_path):
    sentences = [f"w{i}" for i in range(57)]
    write_sentences(tmp_path / "rt-polarity", sentences, sentences[:40])
    train, test = RtPolarity().load(tmp_path, "train"), RtPolarity().load(tmp_path, "test")
    assert (train.y == 0).sum() == 52
    assert test.y.tolist() == [0] * 5 + [1] * 4
    assert train.x.max() < 10_000


def test_the_authors_own_encoding_is_read_too(tmp_path):
    write_sentences(tmp_path / "rt-polaritydata", ["café"] * 10, ["good"] * 10, encoding="latin-1")
    write_sentences(tmp_path / "utf" / "rt-polarity", ["café"] * 10, ["good"] * 10)
    one, other = (RtPolarity().load(root, "train") for root in (tmp_path, tmp_path / "utf"))
    assert torch.equal(one.x, other.x)
    assert one.x.max() == 3


def test_absent_and_empty_sentences_are_explained(tmp_path):
    with pytest.raises(UserError, match="are not in") as caught:
        list(RtPolarity().files(tmp_path))
    assert "SPARSEFLEET_DATA" in caught.value.fix
    write_sentences(tmp_path, ["good"], ["bad"])
    with pytest.raises(UserError, match="1 sentences, at least 10"):
        RtPolarity().load(tmp_path, "train")


def test_invented_sentences_are_tokens():
    data = RtPolarity(vocabulary=30, length=9).fake(500)
    assert data.x.shape == (500, 9)
    assert data.x.dtype == torch.int64
    assert (int(data.x.min()), int(data.x.max())) == (0, 29)
    assert RtPolarity(length=9).info.input_shape == (9,)


@pytest.mark.data
def test_the_real_sentences():
    train, test = RtPolarity().load(Path(TEST_DATA), "train"), RtPolarity().load(Path(TEST_DATA), "test")
    assert train.y.bincount().tolist() == [4798, 4798]
    assert test.y.bincount().tolist() == [533, 533]
    assert int((train.x != 0).sum(1).max()) == 59  # the longest sentence, whole
    words = Counter(train.x[train.x > 1].tolist())
    assert len(words) == 9_998
    assert words[2] == max(words.values())
    assert (int((test.x == 1).sum()), int((test.x != 0).sum())) == (1_920, 22_622)  # 8 % of the test words are new


def test_two_feature_sum_is_what_the_notebooks_draw():
    train, test = TwoFeatureSum().load(NOWHERE, "train"), TwoFeatureSum().load(NOWHERE, "test")
    assert (tuple(train.x.shape), tuple(test.x.shape)) == ((500, 20), (2000, 20))
    for split in (train, test):
        assert split.y.tolist() == [int(row[0] + row[1] > 0) for row in split.x]
        assert 0.45 < float(split.y.double().mean()) < 0.55
    both = torch.cat([train.x, test.x])
    assert both.mean(0).abs().max() < 0.08
    assert (both.std(0) - 1).abs().max() < 0.06
    assert (torch.corrcoef(both.T) - torch.eye(20)).abs().max() < 0.08
    assert torch.equal(train.x, TwoFeatureSum().load(NOWHERE, "train").x)
    assert not torch.equal(train.x, test.x[:500])


def test_first_party_data_sets_say_where_their_shape_comes_from():
    """Static ones are known to the plan without building anything."""
    entries = [entry for entry in catalog().entries if entry.family == "dataset" and entry.distribution == "sparsefleet"]
    assert {entry.name for entry in entries if "info" not in entry.facts} == {"image-folder", "rt-polarity"}
    for entry in entries:
        info = Registry(catalog()).plugin_class("dataset", entry.name)().info
        assert (info.vocabulary > 0) == (entry.name == "rt-polarity")
