from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsefleet.nn import BlockLinear, CsrLinear, FixedFanInLinear, MaskedLinear
from sparsefleet.sparsity.bytes import ROLES, index_bits, resident_bytes, stored_bytes


class Csr(nn.Module):
    def __init__(self, nnz: int, n_out: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(nnz))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.register_buffer("col", torch.zeros(nnz, dtype=torch.int32))
        self.register_buffer("crow", torch.zeros(n_out + 1, dtype=torch.int32))

    def connections(self) -> None:
        return None


@dataclass
class Transposed:
    order: Tensor
    more: list[Tensor]


def test_dense_network_and_momentum() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20), nn.BatchNorm1d(20))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 10)).sum().backward()
    opt.step()
    got = resident_bytes(net, opt)
    n_other = 20 + 20 + 20 + 20 + 20  # bias, two norms' weight and bias
    assert got == {"values": 800, "indices": 0, "masks": 0, "other": 4 * n_other, "buffers": 2 * 80 + 8, "optimizer": 800 + 4 * n_other}
    assert tuple(got) == ROLES


def test_sparse_module_with_hidden_tensors() -> None:
    module = Csr(nnz=100, n_out=8)
    module.cache = {"t": Transposed(torch.zeros(100, dtype=torch.int64), [torch.zeros(7)])}  # type: ignore[assignment]
    got = resident_bytes(nn.Sequential(module))
    assert got["values"] == 400 + 28
    assert got["indices"] == 400 + 36 + 800
    assert got["other"] == 32


def test_a_shared_storage_counts_once_and_a_view_counts_its_whole_storage() -> None:
    a, b = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    b.weight = a.weight
    net = nn.Sequential(a, b)
    net.register_buffer("view", a.weight.detach()[0])
    assert resident_bytes(net)["values"] == 400
    assert resident_bytes(net)["buffers"] == 0
    net.register_buffer("row", torch.zeros(1000)[:1])
    assert resident_bytes(net)["buffers"] == 4000


def test_masked_by_parametrization() -> None:
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(6, 5, dtype=torch.bool))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    linear = nn.Linear(5, 6)
    parametrize.register_parametrization(linear, "weight", Mask())
    got = resident_bytes(linear)
    assert (got["values"], got["masks"], got["other"]) == (120, 30, 24)


def coo(n: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.arange(n).repeat(2, 1), torch.ones(n), (n, n))


def csr(n: int) -> Tensor:
    return torch.sparse_csr_tensor(torch.arange(n + 1), torch.arange(n), torch.ones(n), (n, n))


def csc(n: int) -> Tensor:
    return torch.sparse_csc_tensor(torch.arange(n + 1), torch.arange(n), torch.ones(n), (n, n))


@pytest.mark.parametrize(("make", "n_indices"), [(coo, 32), (csr, 33), (csc, 33)])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support:UserWarning")
def test_torch_sparse_tensors(make: Callable[[int], Tensor], n_indices: int) -> None:
    module = nn.Module()
    module.connections = lambda: None  # type: ignore[assignment]
    module.weight_cache = make(16)  # type: ignore[assignment]
    got = resident_bytes(module)
    assert got["values"] == 64
    assert got["indices"] == 8 * n_indices


def test_meta_device_has_sizes() -> None:
    net = nn.Sequential(nn.Linear(1000, 1000, device="meta"), nn.Linear(1000, 10, device="meta"))
    assert resident_bytes(net)["values"] == 4 * (1_000_000 + 10_000)


@pytest.mark.parametrize(
    ("shape", "nnz", "bits"),
    [
        ((4, 8), 32, 0),  # all are there
        ((4, 8), 16, 32),  # a bit for each site: a column takes 3 bits, and 16 of them with 5 row starts of 5 bits take 73
        ((4, 1024), 5, 5 * 10 + 5 * 3),  # few: 10 bits for a column, row starts from 0 to 5 in 3 bits
        ((3, 1), 0, 0),
    ],
)
def test_positions_take_the_cheaper_of_a_bitmap_and_packed_csr(shape: tuple[int, int], nnz: int, bits: int) -> None:
    assert index_bits(shape, nnz) == bits


@pytest.mark.parametrize("kind", [CsrLinear, MaskedLinear, FixedFanInLinear, BlockLinear])
def test_stored_bytes_do_not_depend_on_the_storage_in_memory(kind: type[nn.Module]) -> None:
    grid = torch.cartesian_prod(torch.arange(8), torch.arange(4, 8)).t()  # 32 of 128 sites: two whole tiles of 4, a fan-in of 4
    layer = kind(16, 8, connections=grid)
    net = nn.Sequential(layer, nn.BatchNorm1d(8), nn.Linear(8, 2))
    rest = 4 * (8 + 8 + 8) + 4 * (8 + 8) + 8 + 4 * (16 + 2)  # bias and norm, its statistics and their count, the dense layer
    assert stored_bytes(net) == (rest + 32 * 4 + 128 // 8, rest + 128 * 4)


def test_a_dense_network_is_stored_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5, bias=False))
    assert stored_bytes(net) == (4 * (200 + 20 + 100), 4 * (200 + 20 + 100))
