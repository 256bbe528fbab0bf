"""The conformance kit, and the split and its scale computed once more from the raw numbers."""

from pathlib import Path
from statistics import fmean, pstdev

import pytest
from sklearn.datasets import load_wine
from sparsefleet.testing import conformance

from sf_wine import WineDataset

TRAIN, TEST = (WineDataset().load(Path(), split) for split in ("train", "test"))


@conformance(WineDataset())
def test_conforms(check):
    """Every rule of the family, one case each."""
    check()


def test_a_third_of_each_grower_is_the_test_split():
    """59, 71 and 48 wines in all."""
    assert TRAIN.y.bincount().tolist() == [39, 47, 32]
    assert TEST.y.bincount().tolist() == [20, 24, 16]


@pytest.mark.parametrize("column", range(13))
def test_the_scale_is_that_of_the_training_split(column):
    """(x - mean) / std in Python's own floats: mean 0 and std 1 in training, and the test wines on the same line from the raw numbers."""
    train, test = (part.x[:, column].double().tolist() for part in (TRAIN, TEST))
    assert (fmean(train), pstdev(train)) == pytest.approx((0, 1), abs=1e-6)
    assert abs(fmean(test)) > 1e-4
    ours, raw = sorted(train + test), sorted(load_wine().data[:, column].tolist())  # all 178 wines, once each
    slope = (ours[-1] - ours[0]) / (raw[-1] - raw[0])
    assert ours == pytest.approx([ours[0] + slope * (x - raw[0]) for x in raw], abs=1e-5)
