"""A pruner that reads gradients passes the kit: every check gives it one."""

from sparsefleet import Pruner
from sparsefleet.testing import check


class Saliency(Pruner):
    """Magnitude of weight times gradient."""

    name = "saliency"
    needs_grad = True

    def score(self, conn):
        return (conn.weight * conn.grad).abs()


class Undeclared(Saliency):
    """Reads the gradient and does not say so."""

    needs_grad = False


def test_a_gradient_is_there_for_those_who_declare_it():
    assert check(Saliency()) == []
    assert any("prunes_to_the_count" in problem for problem in check(Undeclared()))
