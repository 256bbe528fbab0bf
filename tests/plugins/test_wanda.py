"""Throwaway Wanda (arXiv 2306.11695, Eq. 1) in the contract, against numpy.

What it needed: ``per_row`` comparison, ``input_norms``, ``sequential`` (each layer is scored behind the pruned ones before it).
"""

import numpy as np
from small_net import biases, calibration, dense_weights, examples, gradients, masks, sparse_net

from sparsefleet import Pruner
from sparsefleet.nn.topology import Topology


class Wanda(Pruner):
    """Magnitude times the norm of the input it meets, compared within each output unit."""

    name = "wanda"
    paper = "arXiv 2306.11695, Eq. 1"
    needs_calibration = True
    per_row = True
    sequential = True

    def score_all(self, calibration):
        norms = calibration.input_norms()
        return {name: conn.weight.abs() * norms[name][conn.col] for name, conn in calibration.layers.items()}


def prune(network, modules, density):
    """As the trial prunes with a sequential, per-row pruner."""
    topology = Topology(modules, None, seed=0)
    for name in modules:
        scores = Wanda().score_all(calibration(network, modules, topology))
        topology.prune(scores, density, per_row=Wanda.per_row, only=name)


def test_equals_the_reference():
    network, modules = sparse_net(density=1.0)
    w, bias = dense_weights(modules), biases(modules)
    x, y = examples()
    for name, weight in w.items():  # layer by layer, row by row
        norm = np.sqrt((gradients(w, bias, x, y)[3][name] ** 2).sum(0))
        n_keep, n_more = divmod(weight.size // 2, len(weight))  # 21 of 42 in 6 rows: the first three rows keep one more
        for i, row in enumerate(weight):
            order = sorted(range(len(row)), key=lambda j, row=row: (-abs(row[j]) * norm[j], j))
            row[order[n_keep + (i < n_more) :]] = 0
    prune(network, modules, 0.5)
    for name, weight in dense_weights(modules).items():
        np.testing.assert_array_equal(weight, w[name])
    assert [masks(modules)["2"][i].sum() for i in range(6)] == [4, 4, 4, 3, 3, 3]


def test_norms_follow_the_pruned_layers_before():
    network, modules = sparse_net(density=1.0)
    topology = Topology(modules, None, seed=0)
    before = calibration(network, modules, topology).input_norms()
    topology.prune(Wanda().score_all(calibration(network, modules, topology)), 0.5, per_row=True, only="0")
    after = calibration(network, modules, topology).input_norms()
    assert np.allclose(before["0"], after["0"])
    assert not np.allclose(before["2"], after["2"])
    inputs = gradients(dense_weights(modules), biases(modules), *examples())[3]
    for name, norm in after.items():
        np.testing.assert_allclose(norm.numpy(), np.sqrt((inputs[name] ** 2).sum(0)), rtol=1e-12)
