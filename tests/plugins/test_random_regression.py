"""The notebook's regression: drawn data, and its figures. A loss there is the sum over 64 x 10 targets, here their mean."""

import pytest
import torch
from sparsefleet_plugins.datasets.random_regression import RandomRegression

from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial


def test_standard_normal_and_the_same_at_every_call(tmp_path):
    train, test = (RandomRegression().load(tmp_path, split) for split in ("train", "test"))
    assert (train.x.shape, train.y.shape) == ((64, 200), (64, 10))
    for values in (train.x, train.y, test.x, test.y):
        assert abs(float(values.mean())) < 4 / values.numel() ** 0.5
        assert float(values.std()) == pytest.approx(1, abs=4 / (2 * values.numel()) ** 0.5)
    assert not torch.equal(train.x, test.x)
    assert torch.equal(train.x, RandomRegression().load(tmp_path, "train").x)


@pytest.mark.parametrize(
    ("sparse", "lr", "printed"),
    [(False, 1e-4, (4.417, 0.075, 0.002)), (True, 1e-3, (5.111, 0.031, 0.000))],
    ids=["dense", "sparse"],
)
def test_the_losses_that_the_notebook_prints(digits_request, sparse, lr, printed):
    """Its losses before the update in steps 100, 200 and 300, on its own draws; ours are others, so the sizes must agree and not the digits."""
    how = {"layer": {"name": "csr"}, "method": {"rewirer": {"name": "static"}}, "density": 0.1} if sparse else {}
    record = run_trial(
        digits_request(
            dataset={"name": "random-regression"},
            model={"name": "mlp", "params": {"hidden": [1000]}},
            optimizer={"kind": "sgd", "lr": lr * 640},
            train={"epochs": 300, "batch_size": 64},
            validation=0,
            **how,
        )
    )
    assert record.state is State.SUCCEEDED, record.reason
    curve = record.curves["train_loss"]
    loss = dict(zip(curve.steps, curve.values, strict=True))
    ours = [640 * loss[step] for step in (100, 200, 300)]
    for mine, theirs in zip(ours, printed, strict=True):
        assert theirs / 4 - 0.001 < mine < theirs * 4 + 0.001
