from __future__ import annotations

import pytest
import torch
from sparsefleet_plugins.layers.csr import CsrLinear
from sparsefleet_plugins.layers.masked import Masked
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.measure import correctness
from sparsefleet.measure.correctness import FLOOR, check_network, relative_error
from sparsefleet.rng import Rng

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:Sparse invariant checks:UserWarning")


def draw(n_in: int, n_out: int, nnz: int, seed: int = 0) -> tuple[Connections, Tensor]:
    rng = Rng(seed, "test")
    flat = rng.distinct(nnz, n_in * n_out)
    weight = rng.normal(nnz).float()
    return Connections("layer", (n_out, n_in), flat // n_in, flat % n_in, weight), rng.normal(n_out).float()


class Liar(CsrLinear):
    """Adds ``size`` times the largest value to one element of its output or of its weights' gradient."""

    def __init__(self, conn: Connections, bias: Tensor, size: float, where: str) -> None:
        super().__init__(conn.n_in, conn.n_out, bias=bias, connections=conn)
        self.size, self.where = size, where

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.where == "output":
            bump = torch.zeros_like(y)
            bump[y.shape[0] // 2, y.shape[1] // 2] = self.size * float(y.detach().abs().max())
            return y + bump
        return y

    def grad_values(self) -> Tensor | None:
        grad = super().grad_values()
        if grad is not None and self.where == "gradient":
            grad = grad.clone()
            grad[3] += self.size * grad.abs().max()
        return grad


def network(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(50), module, nn.ReLU(), nn.Linear(40, 5))


def check(module: nn.Module, *, gradients: bool = True, precision: str = "fp32", seed: int = 0):
    x = torch.randn(16, 50, generator=torch.Generator().manual_seed(seed))
    return check_network(network(module), [x, x * 2], precision=precision, gradients=gradients, key=str(seed))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("whole", [True, False])
def test_honest_layers_pass(seed: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole:
        monkeypatch.setattr(correctness, "MAX_WHOLE_SITES", 0)
    conn, bias = draw(50, 40, 400, seed)
    found = check(CsrLinear.from_connections(conn, bias), seed=seed)
    assert found.ok, found.reason
    assert found.layers == 1
    assert found.comparisons == 2 + 3 * 4  # in place twice; three inputs with output and three gradients
    assert 0 < found.max_rel_err < 1e-5
    masked = Masked().build(nn.Linear(50, 40, device="meta"), conn, bias)
    assert check(masked, seed=seed).ok


@pytest.mark.parametrize("size", [1.01e-4, 1e-3, 1e-2, 1e-1, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["output", "gradient"])
def test_every_error_of_more_than_ten_tolerances_is_caught(size: float, where: str) -> None:
    assert FLOOR["fp32"] * 10 < 1.01e-4
    conn, bias = draw(50, 40, 400)
    liar = Liar(conn, bias, size, where)
    found = check(liar)
    assert not found.ok
    assert ("gradient by weights" in found.worst) == (where == "gradient")
    assert all(value == value and value < float("inf") for value in found.to_json().values())
    if where == "gradient":
        assert check(liar, gradients=False).ok


def test_a_weight_outside_the_connections_is_caught() -> None:
    conn, bias = draw(50, 40, 400)

    class Leaky(CsrLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-2 * x[..., :1]

    assert not check(Leaky.from_connections(conn, bias), gradients=False).ok


def test_a_cached_output_is_caught() -> None:
    conn, bias = draw(50, 40, 400)

    class Cached(CsrLinear):
        kept: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = super().forward(x).detach()
            return self.kept

    assert "relative error" in check(Cached.from_connections(conn, bias), gradients=False).reason


def test_large_layers_are_sampled_and_still_catch_a_wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "MAX_PRODUCTS", 1000)
    monkeypatch.setattr(correctness, "MAX_DENSE_SITES", 0)
    monkeypatch.setattr(correctness, "MAX_WHOLE_SITES", 0)
    conn, bias = draw(50, 40, 400)
    found = check(CsrLinear.from_connections(conn, bias))
    assert found.ok
    assert found.sampled

    class Off(CsrLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.001

    assert not check(Off.from_connections(conn, bias)).ok


def test_a_million_units_need_no_out_by_in() -> None:
    conn, bias = draw(1_000_000, 1_000_000, 1000)
    net = nn.Sequential(CsrLinear.from_connections(conn, bias))
    found = check_network(net, [torch.ones(2, 1_000_000)], precision="fp32", gradients=True, key="k")
    assert found.ok, found.reason


def test_layers_without_a_reference_are_named() -> None:
    conn, _ = draw(9, 4, 12)
    conv = Masked().build(nn.Conv2d(1, 4, 3, device="meta"), conn, torch.zeros(4))
    conv.kernel = 9
    found = check_network(nn.Sequential(conv), [torch.ones(2, 1, 5, 5)], precision="fp32", gradients=False, key="k")
    assert not found.ok
    assert found.reason == "no reference for 0"


def test_relative_error_by_hand() -> None:
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0], dtype=torch.float64)) == 0.5
    assert relative_error(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == 0.0
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1, dtype=torch.float64)) == float("inf")
    assert relative_error(torch.ones(1), torch.zeros(1, dtype=torch.float64)) == float("inf")
