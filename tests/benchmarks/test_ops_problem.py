from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.ops.cases import Shape
from benchmarks.ops.problem import Problem, connections, make, reference
from sparsefleet.connections import Connections


@pytest.mark.parametrize("shape", [Shape(40, 12, 0.01), Shape(40, 12, 0.3), Shape(7, 5, 1.0), Shape(1, 3, 0.5)])
def test_every_unit_has_the_same_number_of_different_inputs(shape: Shape) -> None:
    conn = connections(shape)
    assert conn.nnz == shape.nnz == shape.n_out * shape.fan_in
    assert conn.per_row().tolist() == [shape.fan_in] * shape.n_out
    assert bool((conn.flat.diff() > 0).all())
    assert int(conn.col.max()) < shape.n_in


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
