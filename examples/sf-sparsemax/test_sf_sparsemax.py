"""The conformance kit, and the paper's closed form and Jacobian worked out by hand."""

import torch
from sparsefleet.testing import conformance

from sf_sparsemax import Sparsemax, SparsemaxActivation


@conformance(SparsemaxActivation(), SparsemaxActivation(total=8))
def test_conforms(check):
    check()


def sparsemax(*x, total=1.0):
    return Sparsemax(total)(torch.tensor([x], dtype=torch.float64))[0]


def is_equal(got, want):
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_the_closed_form_by_hand():
    is_equal(sparsemax(1, 0.5, -1), [0.75, 0.25, 0])  # 1 + 2 * 0.5 > 1.5, but 1 - 3 * 1 < 0.5: k = 2, tau = (1.5 - 1) / 2
    is_equal(sparsemax(1, 0.5, -1, total=4), [13 / 6, 10 / 6, 1 / 6])  # 4 - 3 > 0.5: k = 3, tau = (0.5 - 4) / 3


def test_two_units_are_a_hard_sigmoid():  # section 2.4
    for t, first in [(-2.0, 0.0), (-1.0, 0.0), (-0.5, 0.25), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0), (2.0, 1.0)]:
        is_equal(sparsemax(t, 0), [first, 1 - first])


def test_the_jacobian_is_that_of_section_2_5():
    x = torch.tensor([1, 0.5, -1, 0.75], dtype=torch.float64)  # the support is units 0, 1 and 3
    got = torch.autograd.functional.jacobian(lambda x: Sparsemax(1.0)(x[None])[0], x)
    support = torch.tensor([1, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(got, support.diag() - torch.outer(support, support) / 3, rtol=0, atol=1e-15)
