"""The conformance kit, and the paper's formula worked out by hand."""

import torch
from sparsefleet.testing import calibration_of, conformance, layer_of

from sf_ria import RiaPruner


@conformance(RiaPruner(), RiaPruner(power=0), RiaPruner(power=1, examples=16))
def test_conforms(check):
    check()


def scores(weight, norms, **parameters):
    """The scores of a layer that has every connection, as a matrix."""
    weight = torch.tensor(weight, dtype=torch.float64)
    conn = layer_of(tuple(weight.shape), weight.numel(), weight=weight.flatten())
    calibration = calibration_of({"fc": conn}, input_norms={"fc": torch.tensor(norms, dtype=torch.float64)})
    return RiaPruner(**parameters).score_all(calibration)["fc"].view_as(weight)


def test_the_formula_by_hand():
    got = scores([[1, -3], [4, 1]], [4, 9])  # columns sum to 5 and 4, rows to 4 and 5; the norms' roots are 2 and 3
    want = [[(1 / 5 + 1 / 4) * 2, (3 / 4 + 3 / 4) * 3], [(4 / 5 + 4 / 5) * 2, (1 / 4 + 1 / 5) * 3]]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_unit_of_zeros_scores_zero():
    assert scores([[0, 0], [0, 2]], [1, 1], power=0).tolist() == [[0, 0], [0, 2]]
