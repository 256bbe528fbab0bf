"""The notebook's very wide net, small: its forward pass by hand, its initial state, its narrow forms."""

import pytest
import torch
from sparsefleet_plugins.models.wide_mlp import WideMlp
from torch import nn
from torch.nn import functional as F

from sparsefleet import DataInfo
from sparsefleet.registry import Registry
from sparsefleet.trial.build import build_network
from sparsefleet.trial.record import State
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.spec import TrialSpec

DATA = DataInfo("classification", (1, 2, 3), 4)


def test_the_forward_pass_is_the_notebooks():
    net = WideMlp(hidden=(8, 8), repeat=2).build(DATA, lambda _: nn.ReLU()).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    image = torch.randn(3, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = dict(net.named_parameters())
    x = torch.repeat_interleave(image.view(-1, 6), 2, dim=1)
    x = p["scale.weight"] * x + p["scale.bias"]
    for i in (1, 2):
        x = F.relu(F.layer_norm(F.linear(x, p[f"fc{i}.weight"], p[f"fc{i}.bias"]), (8,), p[f"norm{i}.weight"], p[f"norm{i}.bias"]))
    x = F.linear(x, p["fc3.weight"], p["fc3.bias"])
    torch.testing.assert_close(net(image), x.view(3, -1, 4).sum(dim=1))
    assert p["fc3.weight"].shape == (8, 8)


def test_the_scale_starts_as_the_identity_after_meta():
    spec = TrialSpec(
        dataset={"name": "digits"},
        model={"name": "wide-mlp", "params": {"hidden": [30], "repeat": 3}},
        layer={"name": "csr"},
        method={"rewirer": {"name": "static"}},
        density=0.1,
        optimizer={"kind": "sgd", "lr": 0.1},
        train={"epochs": 1},
    )
    network = build_network(spec)
    state = network.module.state_dict()
    assert state["scale.weight"].tolist() == [1.0] * 192
    assert state["scale.bias"].tolist() == [0.0] * 192
    assert [module.matrix_shape for module in network.sparse.values()] == [(30, 192), (30, 30)]
    again = build_network(spec)
    again.module.load_state_dict(state)


@pytest.mark.parametrize(
    ("hidden", "readout", "last"), [((7,), "grouped-sum", 8), ((8,), "grouped-sum", 8), ((7,), "dense", 4), ((1,), "grouped-sum", 4)]
)
def test_the_last_layer(hidden, readout, last):
    net = WideMlp(hidden=hidden, readout=readout).build(DATA, lambda _: nn.ReLU())
    assert net.fc2.out_features == last
    assert net(torch.zeros(5, 1, 2, 3)).shape == (5, 4)


def test_small_dense_has_the_parameters_of_the_sparse_net():
    sparse = TrialSpec(
        dataset={"name": "mnist"},
        model={"name": "wide-mlp", "params": {"hidden": [50_000] * 4, "repeat": 10}},
        narrow_to_density=0.001,
        optimizer={"kind": "sgd", "lr": 5e-5},
        train={"epochs": 1},
    )
    from sparsefleet.trial.build import _on_meta

    info = Registry().plugin_class("dataset", "mnist").info
    narrow, _ = _on_meta(sparse, Registry(), info)
    prunable = 50_000 * 7840 + 4 * 50_000**2
    rest = 5 * 50_000 + 4 * 2 * 50_000 + 2 * 7840
    assert sum(p.numel() for p in narrow.parameters()) == pytest.approx(0.001 * prunable + rest, rel=0.01)


def test_the_grid_million_in_small(digits_request):
    """Fan-in 16 in every layer, the last as wide as the hidden one and summed by class: nearly every connection is on a path, and the loss falls."""
    width = 3000
    record = run_trial(
        digits_request(
            model={"name": "wide-mlp", "params": {"hidden": [width]}},
            layer={"name": "csr"},
            connectivity={"name": "fixed-fan-in", "params": {"fan_in": 16}},
            method={"rewirer": {"name": "static"}},
            density=2 * 16 * width / (64 * width + width**2),
            optimizer={"kind": "sgd", "lr": 1e-3},
            train={"epochs": 2, "batch_size": 32},
            validation=0,
        )
    )
    assert record.state is State.SUCCEEDED, record.reason
    assert [(layer.nnz, layer.fan_in_cv) for layer in record.counts.layers] == [(16 * width, 0.0)] * 2
    assert sum(layer.nnz_effective for layer in record.counts.layers) >= 0.9 * record.counts.nnz_weights
    losses = record.curves["train_loss"].values
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
