"""Wanda (arXiv 2306.11695, Eq. 1) against numpy."""

import numpy as np
import pytest
import torch
from small_net import INFO, biases, calibration, dense_weights, examples, gradients, masks, sparse_net
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.pruning.wanda import Wanda
from torch import nn

from sparsefleet import Connections, PluginError, Rng
from sparsefleet.nn.topology import Topology
from sparsefleet.sparsity.vocabulary import NOfM
from sparsefleet.trial.calibrate import NetworkCalibration


def prune(network, modules, density, pattern=None):
    """As the trial prunes with a sequential, per-row pruner."""
    topology = Topology(modules, None, seed=0)
    for name in modules:
        scores = Wanda().score_all(calibration(network, modules, topology))
        topology.prune(scores, density, per_row=Wanda.per_row, only=name, pattern=pattern)


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
        np.testing.assert_array_equal(weight, w[name])  # what stays is what it was: no weight update
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


def test_norms_add_up_over_batches():
    network, modules = sparse_net(density=1.0)
    connections, (x, y) = Topology(modules, None, seed=0).connections("prune", 0), examples()
    whole = NetworkCalibration(network, modules, connections, [(x, y)], INFO).input_norms()
    parts = NetworkCalibration(network, modules, connections, [(x[:5], y[:5]), (x[5:], y[5:])], INFO).input_norms()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=0)


def test_two_of_four_compares_within_each_group():
    """The paper prunes to n:m with the same score; comparing whole rows would leave other groups."""
    network, modules = sparse_net(density=1.0)
    first = dense_weights(modules)["0"]
    norm = calibration(network, modules).input_norms()["0"].numpy()
    prune(network, modules, 0.5, NOfM(n=2, m=4))
    mask = masks(modules)["0"]
    for i, row in enumerate(np.abs(first) * norm):
        for start in (0, 4):
            best = sorted(range(start, start + 4), key=lambda j, row=row: (-row[j], j))[:2]
            assert sorted(np.nonzero(mask[i, start : start + 4])[0] + start) == sorted(best)


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
def test_the_norm_of_a_convolution_is_over_what_each_kernel_element_sees(geometry):
    n_out, n_in, k = 3, 2, 3
    site = torch.arange(n_out * n_in * k * k)
    conn = Connections("0", (n_out, n_in * k * k), site // 18, site % 18, Rng("conv").normal(site.numel()))
    module = Masked().build(nn.Conv2d(n_in, n_out, k, bias=False, device="meta", **geometry), conn, None)
    module.layer_name = "0"
    x = Rng("images").normal(4 * n_in * 7 * 7).view(4, n_in, 7, 7)
    found = NetworkCalibration(nn.Sequential(module), {"0": module}, {"0": conn}, [(x, None)], INFO)
    stride, padding, dilation = (geometry.get(key, default) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n_places = (padded.shape[2] - dilation * (k - 1) - 1) // stride + 1
    square = np.zeros((n_in, k, k))
    for example, c, i, j, up, left in np.ndindex(4, n_in, k, k, n_places, n_places):
        square[c, i, j] += padded[example, c, up * stride + i * dilation, left * stride + j * dilation] ** 2
    np.testing.assert_allclose(found.input_norms()["0"].numpy(), np.sqrt(square).reshape(-1), rtol=1e-12)
    want = conn.weight.abs().numpy().reshape(n_out, -1) * np.sqrt(square).reshape(1, -1)
    np.testing.assert_allclose(Wanda().score_all(found)["0"].numpy().reshape(n_out, -1), want, rtol=1e-12)


def test_a_grouped_convolution_is_refused():
    site = torch.arange(4 * 9)
    conn = Connections("0", (4, 9), site // 9, site % 9, torch.ones(36))
    module = Masked().build(nn.Conv2d(4, 4, 3, groups=4, bias=False, device="meta"), conn, None)
    module.layer_name = "0"
    found = NetworkCalibration(nn.Sequential(module), {"0": module}, {"0": conn}, [(torch.ones(1, 4, 5, 5), None)], INFO)
    with pytest.raises(PluginError, match="grouped"):
        Wanda().score_all(found)


def test_global_is_refused():
    network, modules = sparse_net(density=1.0)
    scores = Wanda().score_all(calibration(network, modules))
    with pytest.raises(PluginError, match="one by one"):
        Topology(modules, None, seed=0).prune(scores, 0.5, distribution="global", per_row=True, only="0")
