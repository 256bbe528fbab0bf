"""``calibration_of``: the core's own calibration of layers with known weights."""

import pytest
import torch

from sparsefleet import UserError
from sparsefleet.testing import calibration_of, layer_of


def full(weight):
    """A layer that has every connection."""
    weight = torch.tensor(weight, dtype=torch.float64)
    return layer_of(tuple(weight.shape), weight.numel(), weight=weight.flatten())


LAYERS = {"fc": full([[1, -3], [4, 1], [0, 2]]), "out": full([[1, 0, 2]])}


def test_the_network_is_the_layers_with_relu_between():
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    calibration = calibration_of(LAYERS, batches=[(x, torch.zeros(2, dtype=torch.int64))])
    assert calibration.forward({}, x).tolist() == [[4], [4]]  # relu(-2, 5, 2) and relu(4, 3, -2), by (1, 0, 2)
    doubled = {"out": 2 * LAYERS["out"].weight}
    assert calibration.forward(doubled, x).tolist() == [[8], [8]]
    norms = calibration.input_norms()
    torch.testing.assert_close(norms["fc"], torch.tensor([2.0, 2.0], dtype=torch.float64).sqrt())
    torch.testing.assert_close(norms["out"], torch.tensor([4.0, 34**0.5, 2.0], dtype=torch.float64))
    assert calibration.layers["fc"] is LAYERS["fc"]


def test_examples_are_invented_and_norms_may_be_given():
    calibration = calibration_of(LAYERS, input_norms={"fc": torch.ones(2), "out": torch.arange(3)})
    (x, y), (again, _) = calibration.batches[0], calibration_of(LAYERS).batches[0]
    assert torch.equal(x, again)
    assert calibration.loss(calibration.forward({}, x), y).item() == 0  # one class
    assert calibration.input_norms()["out"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("layers", "norms", "words"),
    [
        ({}, None, "no layers"),
        ({"out": LAYERS["out"], "fc": LAYERS["fc"]}, None, "layer 'out' has 1 outputs, and layer 'fc' after it 2 inputs"),
        (LAYERS, {"fc": torch.ones(2)}, "layer 'out' needs input norms of shape \\(3,\\)"),
        (LAYERS, {"fc": torch.ones(3), "out": torch.ones(3)}, "layer 'fc' needs input norms of shape \\(2,\\)"),
    ],
)
def test_what_is_no_network_is_refused(layers, norms, words):
    with pytest.raises(UserError, match=words):
        calibration_of(layers, input_norms=norms)
