from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from benchmarks.ops.cases import Shape
from benchmarks.ops.problem import Problem, connections, fixed_fan_in, make, reference
from sparsefleet.connections import Connections
from sparsefleet.rng import Rng


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 12), density=st.floats(0.01, 1.0), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_unit_has_the_same_number_of_different_inputs(n_in: int, n_out: int, density: float, seed: int) -> None:
    shape = Shape(n_in, n_out, density)
    col = fixed_fan_in(shape, Rng(seed))
    assert col.shape == (n_out, shape.fan_in)
    assert bool((col[:, 1:] > col[:, :-1]).all())
    assert int(col.min()) >= 0
    assert int(col.max()) < n_in
    assert shape.nnz == n_out * shape.fan_in


@pytest.mark.parametrize("density", [0.4, 0.6])  # drawn, and its complement drawn
def test_every_set_of_inputs_is_equally_likely(density: float) -> None:
    """2 (or 3) of 5 inputs: ten sets, 20,000 draws; a count is off its mean of 2,000 by 5 standard deviations (212) once in 10^6."""
    col = fixed_fan_in(Shape(5, 20_000, density), Rng("sets"))
    counts = Counter(map(tuple, col.tolist()))
    assert len(counts) == 10
    assert max(abs(count - 2000) for count in counts.values()) < 212


def test_the_answers_are_those_of_the_dense_matrix() -> None:
    """W = [[2, 0], [0, 3]], x = [1, 10], gradient [1, -1]: y = [2, 30], dX = [2, -3], dW = [1, -10]."""
    conn = Connections("layer", (2, 2), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([2.0, 3.0]))
    y, dx, dw = reference(conn, torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, -1.0]]))
    assert (y.tolist(), dx.tolist(), dw.tolist()) == ([[2.0, 30.0]], [[2.0, -3.0]], [1.0, -10.0])


def test_a_problem_is_the_same_every_time_and_survives_its_file(tmp_path: Path) -> None:
    shape = Shape(30, 20, 0.2)
    one, other = make(shape, 7), make(shape, 7)
    one.save(tmp_path / "problem.pt")
    loaded = Problem.load(tmp_path / "problem.pt", "cpu")
    weight = torch.zeros(20, 30, dtype=torch.float64)
    weight[one.conn.row, one.conn.col] = one.conn.weight.double()
    for two in (other, loaded):
        assert torch.equal(two.conn.flat, one.conn.flat)
        assert all(torch.equal(a, b) for a, b in zip(two.inputs + two.grads, one.inputs + one.grads, strict=True))
        torch.testing.assert_close(two.y, one.inputs[0].double() @ weight.t())
        torch.testing.assert_close(two.dx, one.grads[0].double() @ weight)
        torch.testing.assert_close(two.dw, (one.grads[0].double().t() @ one.inputs[0].double())[one.conn.row, one.conn.col])
    assert not torch.equal(connections(Shape(30, 20, 0.3)).flat, one.conn.flat)
