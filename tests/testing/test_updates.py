"""What authors make their own tests of: ``layer_of`` and ``apply``."""

import pytest
import torch

from sparsefleet import Update
from sparsefleet.errors import InvalidMask, PluginError
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress, Rewirer
from sparsefleet.rng import Rng
from sparsefleet.testing import apply, layer_of
from sparsefleet.testing.reference import inputs, module_for


def test_gradients_may_be_given_by_connection_or_by_site():
    own = torch.arange(5.0)
    assert layer_of((3, 4), 5, grad=own).grad.tolist() == own.tolist()
    everywhere = torch.arange(12.0).view(3, 4)
    conn = layer_of((3, 4), 5, grad=everywhere)
    assert conn.grad.tolist() == conn.flat.tolist()
    absent = sorted(set(range(12)) - set(conn.flat.tolist()))
    row, col = conn.best_absent(2)
    assert (row * 4 + col).tolist() == absent[-2:]
    assert torch.equal(conn.dense.grad, everywhere.double())


def test_a_constant_fan_in():
    conn = layer_of((3, 4), 6, constant_fan_in=True)
    assert conn.constant_fan_in
    assert conn.per_row().tolist() == [2, 2, 2]
    with pytest.raises(PluginError, match="constant fan-in"):
        layer_of((3, 4), 7, constant_fan_in=True)


def test_the_layer_after_an_update():
    conn = layer_of((2, 3), 3, weight=torch.tensor([1.0, 2.0, 3.0]))
    conn.state = {"age": torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)}
    keep = torch.tensor([True, False, True])
    new = conn.select(keep).random_absent(2, Rng("new"))
    after = apply(conn, Update(keep, new.flip(1)), torch.tensor([0.5, 0.25]))
    weights = dict(zip(after.flat.tolist(), after.weight.tolist(), strict=True))
    grown = (new[0] * 3 + new[1]).tolist()
    assert weights == {int(conn.flat[0]): 1.0, int(conn.flat[2]): 3.0, grown[1]: 0.5, grown[0]: 0.25}
    assert dict(zip(after.flat.tolist(), after.state["age"].tolist(), strict=True))[grown[0]] == 0.0
    assert (after.grad, conn.nnz, conn.weight.tolist()) == (None, 3, [1.0, 2.0, 3.0])
    assert after.dense.weight.view(-1)[after.flat].tolist() == after.weight.tolist()
    assert not apply(conn, Update(keep, new)).weight[torch.isin(after.flat, new[0] * 3 + new[1])].any()


def test_it_is_what_the_core_makes():
    class Plain(Rewirer):
        name = "plain"

    module = module_for(Plain())
    topology = Topology({"layer": module}, torch.optim.SGD([module.weight_parameter], lr=0.1), seed=0)
    module(inputs()).sum().backward()
    conn, progress = topology.connections("rewire", 5)["layer"], Progress(5, 40, 5)
    expected = apply(conn, Plain().update(conn, progress, conn.rng, conn.nnz))
    topology.rewire(Plain(), progress)
    assert torch.equal(module.flat_sites(), expected.flat)
    assert torch.equal(module.connections().weight.double(), expected.weight.double())


def test_sites_that_cannot_be():
    conn = layer_of((2, 3), 3)
    keep = torch.ones(3, dtype=torch.bool)
    with pytest.raises(PluginError, match="already there"):
        apply(conn, Update(keep, torch.stack([conn.row[:1], conn.col[:1]])))
    with pytest.raises(InvalidMask):
        apply(conn, Update(keep, torch.tensor([[2], [0]])))
