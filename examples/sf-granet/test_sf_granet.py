"""The conformance kit, and updates worked out by hand from the paper's formulas."""

import pytest
import torch
from sparsefleet import Progress, Rng, UserError
from sparsefleet.testing import apply, conformance, layer_of

from sf_granet import GranetRewirer


@conformance(GranetRewirer(), GranetRewirer(every=2), GranetRewirer(every=None, initial=0.5, end=0.3))
def test_conforms(check):
    """Every rule of the family, one case each."""
    check()


def dense_layer():
    """2 x 4, all eight sites live, float64, with |w| of 1 to 8 in a known order."""
    weight = torch.tensor([3.0, -8.0, 1.0, -2.0, 7.0, -4.0, 6.0, 5.0], dtype=torch.float64)
    return layer_of((2, 4), 8, weight=weight)


def test_an_update_by_hand():
    """T = 20, t_f = 10, t = 5, from 8 to 2: n_t = 2 + 6 / 8 = 2.75, so 3; r_t = 0.25 (1 + cos(pi / 4)) = 0.427, so 1 of the 3 is renewed."""
    conn = dense_layer()
    keep, new = GranetRewirer(every=5, end=0.5).update(conn, Progress(5, 20, 5), Rng("test"), 2)
    assert keep.nonzero().flatten().tolist() == [1, 4]  # |w| of 8 and 7
    gradient = conn.dense.grad.abs().flatten()
    absent = [site for site in range(8) if site not in (1, 4)]  # what was just pruned may come back, as in the paper
    best = max(absent, key=lambda site: float(gradient[site]))
    assert new.tolist() == [[best // 4], [best % 4]]


def test_the_schedule_by_hand():
    """n_t = 100 + 700 (1 - t / 10)^3 from step to step, each from what the one before left, and 100 for good at the end."""
    method = GranetRewirer(every=2, end=0.5)
    conn = layer_of((20, 40), 800)
    method.on_step(conn, 0.1, Rng("test"))
    counts = []
    for step in range(2, 20, 2):
        assert method.due(Progress(step, 20, 5))
        conn = apply(conn, method.update(conn, Progress(step, 20, 5), Rng("test"), 100))
        counts.append(conn.nnz)
    assert counts == [458, 251, 145, 106, 100, 100, 100, 100, 100]  # 700 * 0.512 = 358.4, 700 * 0.216 = 151.2, 44.8, 5.6, 0


def test_the_end_is_due_whatever_the_interval():
    """t_f = 10 is no multiple of 7; the regeneration goes on after it."""
    method = GranetRewirer(every=7, end=0.5)
    assert [step for step in range(1, 20) if method.due(Progress(step, 20, 5))] == [7, 10, 14]
    assert GranetRewirer(end=0.01).due(Progress(1, 20, 5))


def test_a_constant_fan_in_stays_constant():
    """2 connections for 2 units: one each."""
    conn = layer_of((2, 4), 8, constant_fan_in=True)
    after = apply(conn, GranetRewirer(every=5, end=0.5).update(conn, Progress(5, 20, 5), Rng("test"), 2))
    assert after.per_row().tolist() == [1, 1]


def test_it_only_prunes():
    """A start that is sparser than the end is refused."""
    with pytest.raises(UserError, match="cannot prune"):
        GranetRewirer(initial=0.5).first_density(0.6)
    assert GranetRewirer().first_density(0.1) == 1
