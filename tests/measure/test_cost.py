from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.trust.counts import brute, nets
from sparsefleet.errors import UserError
from sparsefleet.measure.cost import OPTIMIZER_VALUES, cost, optimizer_kind
from sparsefleet.trial.build import build_network
from sparsefleet.trial.spec import Adam, AdamW, RMSprop, Sgd
from tests.measure.trained import spec_of


def csr_net(density: float = 0.1) -> nn.Module:
    return build_network(spec_of("csr", density)).module


def test_a_dense_layer_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    found = cost(net, torch.ones(5, 3), "forward", "sgd", "fp32")
    assert found.flops == 2 * 3 * 2 * 5
    assert found.dram_bytes == 4 * (3 * 2 + 5 * 3 + 5 * 2)
    assert found.gather_bytes == found.optimizer_bytes == 0
    step = cost(net, torch.ones(5, 3), "step", "sgd-momentum", "fp32")
    assert step.flops == 2 * found.flops, "the first layer needs no gradient by its input"
    assert step.optimizer_bytes == 20 * (6 + 2)
    assert step.working_set == 3 * 4 * (6 + 2) - 2 * 4


def test_a_sparse_layer_by_hand() -> None:
    net = csr_net()
    first, last = cost(net, torch.ones(7, 64), "step", "adam", "fp32").layers
    assert first.shape == (128, 64) and first.execution == "sparse_csr"
    n = first.nnz
    forward, backward = first.works
    assert forward.flops == 2 * n * 7
    assert forward.weight_bytes == 8 * n + 4 * 129, "int32 columns and row pointer"
    assert forward.gather_bytes == n * 7 * 4
    assert forward.table_bytes == 7 * 64 * 4
    assert backward.flops == 2 * n * 7 and last.works[1].flops == 2 * last.works[0].flops
    assert first.stored_bytes == n * (4 + 4 + 4 + 4) + 4 * (129 + 65), "the transpose's indices are stored too"
    assert first.compression == pytest.approx(64 * 128 * 4 / first.stored_bytes)


def test_masked_counts_as_the_dense_product_that_it_runs() -> None:
    masked, dense = build_network(spec_of("masked", 0.1)).module, build_network(spec_of("dense", 1.0)).module
    x = torch.ones(3, 64)
    found, twin = cost(masked, x, "forward", "sgd", "fp32"), cost(dense, x, "forward", "sgd", "fp32")
    assert found.flops == twin.flops
    assert found.stored_bytes == twin.stored_bytes + twin.layers[0].sites + twin.layers[1].sites, "a byte of mask for each site"
    assert found.params < twin.params == found.params_dense
    assert found.compression < 1 < found.weights_per_connection


@pytest.mark.parametrize("op", ["forward", "step"])
def test_dense_counts_agree_with_those_of_torch(op: str) -> None:
    groups = 2 if op == "forward" else 1  # torch counts a grouped convolution's weight gradient as if it were not grouped
    conv = nn.Conv2d(8, 4, 1, groups=groups)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), conv, nn.Flatten(), nn.Linear(64, 10))
    x = torch.randn(5, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        out = net(x)
        if op == "step":
            out.sum().backward()
    assert cost(net, x, op, "sgd", "fp32").flops == counter.get_total_flops()


def test_positions_are_rows() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    (layer,) = cost(net, torch.ones(3, 5, 4), "forward", "sgd", "fp32").layers
    assert layer.rows == 15
    (conv,) = cost(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.ones(2, 1, 5, 5), "forward", "sgd", "fp32").layers
    assert (conv.rows, conv.kernel, conv.sites) == (2 * 9, 9, 18)


def test_a_module_that_is_called_twice_counts_twice_and_is_stored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(x))

    found = cost(Twice(), torch.ones(3, 4), "forward", "sgd", "fp32")
    assert found.flops == 2 * (2 * 16 * 3)
    assert found.stored_bytes == 4 * (16 + 4)


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    net[1].eval()
    net[0].requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(8, 4)
    seed = torch.random.get_rng_state()
    cost(net, x, "step", "sgd", "fp32")
    assert [module.training for module in net] == [True, False, True, True]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(seed, torch.random.get_rng_state())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_precision_sets_the_width() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.ones(2, 4)
    half = cost(net, x, "forward", "sgd", "bf16").layers[1].works[0]
    assert half.activation_bytes == 2 * (8 + 8)
    double = cost(net.double(), x.double(), "step", "adamw", "fp64")
    assert double.layers[0].works[0].weight_bytes == 8 * 16 and double.optimizer_bytes == 2 * 28 * 40


def test_every_optimizer_of_a_spec_is_counted() -> None:
    kinds = [Sgd(lr=1), Sgd(lr=1, momentum=0.9), Adam(lr=1), AdamW(lr=1), RMSprop(lr=1), RMSprop(lr=1, momentum=0.5)]
    assert [OPTIMIZER_VALUES[optimizer_kind(kind)] for kind in kinds] == [3, 5, 7, 7, 5, 7]
    with pytest.raises(UserError, match="lion"):
        cost(nn.Linear(1, 1), torch.ones(1, 1), "step", "lion", "fp32")


@settings(max_examples=25, deadline=None)
@given(nets())
def test_counts_agree_with_loops_over_every_connection(case: object) -> None:
    assert brute(case) == case.counted()
