"""RigL against a slow reference written from arXiv 1911.11134, Algorithm 1."""

import torch
from by_hand import best_absent_slowly, connections, cosine_slowly, drawn, flat_of, mask_of, sites_of
from hypothesis import given, settings, strategies as st
from sparsefleet_plugins.rewiring.rigl import RigL

from sparsefleet import Progress, Rng


def update_slowly(weight, grad, live, f):
    """Kept and grown sites."""
    values, n_drop = weight.reshape(-1).tolist(), int(f * len(live) + 1e-9)
    kept = set(sorted(live, key=lambda site: (-abs(values[site]), site))[: len(live) - n_drop])
    return kept, flat_of(best_absent_slowly(grad, kept, n_drop), weight.shape[1])


def test_a_worked_example():
    weight = [[0.9, -0.1, 0.0, 0.0], [0.5, 0.2, 0.0, 0.0]]
    grad = [[0.0, 0.3, -0.7, 0.1], [9.0, 0.1, 0.2, 0.0]]
    conn = connections(weight, grad=grad)
    keep, new = RigL(drop_fraction=1.0).update(conn, Progress(375, 1000, 50), Rng(0), 4)  # half way to 0.75: f = 0.5
    assert conn.weight[keep].tolist() == [0.9, 0.5]
    # among all sites that are not kept, the just-dropped (0, 1) has the second largest gradient; (1, 0) is kept
    assert new.tolist() == [[0, 0], [1, 2]]


@given(st.integers(0, 10_000), st.integers(1, 47), st.integers(1, 749), st.booleans())
@settings(max_examples=80, deadline=None)
def test_equals_the_slow_reference(seed, nnz, step, tied):
    weight, grad, live = drawn(seed, nnz, tied)
    conn = connections(weight, mask_of(live), grad=grad)
    keep, new = RigL().update(conn, Progress(step, 1000, 50), Rng(0), nnz)
    want_kept, want_new = update_slowly(weight, grad, live, cosine_slowly(0.3, step, 750))
    assert sites_of(conn, keep) == want_kept
    assert flat_of(new, 8) == want_new


def test_clock_and_cosine():
    plugin = RigL()
    assert [step for step in range(1001) if plugin.due(Progress(step, 1000, 50))] == [100, 200, 300, 400, 500, 600, 700]
    conn = connections(torch.ones(10, 100))
    counts = [plugin.drop_count(conn, Progress(step, 1000, 50)) for step in (0, 250, 375, 500, 750)]
    assert counts == [300, 225, 150, 75, 0]  # 0.15 * (1 + cos(pi t / 750)) of 1000; at 250 and 500 the cosine is +-0.5


def test_contract_facts():
    assert RigL.replaces_step  # most ports take the optimizer's step as well
    assert RigL.keeps_regrown  # a just-dropped, regrown connection keeps its value, as in the authors' code
    assert RigL.needs_absent_grad
    assert RigL().grown_weight(connections(torch.ones(1, 3)), torch.zeros((2, 2), dtype=torch.int64), Rng(0)).tolist() == [0.0, 0.0]
    assert RigL().model_dump() == {"every": 100, "drop_fraction": 0.3, "stop": 0.75}
