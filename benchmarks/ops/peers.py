"""One sparse matrix in the hands of each peer: a callable of the input, differentiable by input and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.figures import NotRun
from sparsefleet.connections import Connections
from sparsefleet.rng import Rng


@dataclass(frozen=True)
class Shape:
    """A layer: inputs, outputs, share of the connections that are there."""

    n_in: int
    n_out: int
    density: float

    def __str__(self) -> str:
        return f"{self.n_in}→{self.n_out}, {100 * (1 - self.density):g} %"

    def connections(self, device: str) -> Connections:
        """Random ones with normal weights."""
        rng = Rng(0, "ops", str(self))
        n_sites = self.n_in * self.n_out
        flat = rng.distinct(round(self.density * n_sites), n_sites)
        weight = rng.normal(flat.numel()).float() * (self.density * self.n_in) ** -0.5
        conn = (flat // self.n_in, flat % self.n_in, weight)
        return Connections("layer", (self.n_out, self.n_in), *(part.to(device) for part in conn))


@dataclass(frozen=True)
class Peer:
    """A way to multiply.

    Attributes:
        forward: ``(batch, n_in)`` to ``(batch, n_out)``.
        weight: what gradients are taken by.
        grad_values: the gradient by the connections, ``(nnz,)`` in ascending order of site, after a backward pass.
    """

    forward: Callable[[Tensor], Tensor]
    weight: Tensor
    grad_values: Callable[[], Tensor]


def ours(conn: Connections) -> Peer:
    """The csr layer."""
    from sparsefleet_plugins.layers.csr import CsrLinear

    module = CsrLinear(conn, None)
    return Peer(module, module.values_, lambda: _present(module.values_.grad))


def dense(conn: Connections) -> Peer:
    """``F.linear`` with the dense matrix, as it is."""
    weight = torch.zeros(conn.shape, device=conn.weight.device)
    weight[conn.row, conn.col] = conn.weight
    weight.requires_grad_()
    return Peer(lambda x: F.linear(x, weight), weight, lambda: _present(weight.grad)[conn.row, conn.col])


def torch_csr(conn: Connections) -> Peer:
    """``torch.sparse.mm`` of a CSR tensor, with torch's own gradient."""
    coo = torch.sparse_coo_tensor(torch.stack([conn.row, conn.col]), conn.weight, conn.shape, check_invariants=False)
    weight = coo.coalesce().to_sparse_csr().requires_grad_()
    return Peer(lambda x: torch.sparse.mm(weight, x.t()).t(), weight, lambda: _values(_present(weight.grad), conn))


def torch_coo(conn: Connections) -> Peer:
    """``torch.sparse.mm`` of a COO tensor, with torch's own gradient."""
    weight = torch.sparse_coo_tensor(torch.stack([conn.row, conn.col]), conn.weight, conn.shape, check_invariants=False).coalesce()
    weight = weight.detach().requires_grad_()
    return Peer(lambda x: torch.sparse.mm(weight, x.t()).t(), weight, lambda: _values(_present(weight.grad), conn))


def torch_sparse(conn: Connections) -> Peer:
    """``SparseTensor @`` of the torch-sparse package."""
    try:
        from torch_sparse import SparseTensor
    except ImportError as error:
        raise NotRun("torch-sparse is not installed") from error
    except OSError as error:  # built for another torch
        raise NotRun(f"torch-sparse does not load: {str(error).splitlines()[0]}") from error
    values = conn.weight.clone().requires_grad_()

    def forward(x: Tensor) -> Tensor:
        out: Tensor = SparseTensor(row=conn.row, col=conn.col, value=values, sparse_sizes=conn.shape, is_sorted=True) @ x.t()
        return out.t()

    return Peer(forward, values, lambda: _present(values.grad))


PEERS: dict[str, Callable[[Connections], Peer]] = {
    "dense eager": dense,
    "torch CSR": torch_csr,
    "torch COO": torch_coo,
    "torch-sparse": torch_sparse,
}


def _values(grad: Tensor, conn: Connections) -> Tensor:
    """``(nnz,)``: of a gradient that torch returns dense, in COO or in CSR."""
    if grad.layout == torch.strided:
        return grad[conn.row, conn.col]
    found = grad.to_sparse_coo().coalesce() if grad.layout == torch.sparse_csr else grad.coalesce()
    if found.values().numel() != conn.weight.numel():
        _refuse(f"a gradient of {found.values().numel():,} values for {conn.weight.numel():,} connections")
    return found.values()


def _present(grad: Tensor | None) -> Tensor:
    return _refuse("no gradient by the weights") if grad is None else grad


def _refuse(why: str) -> NoReturn:
    raise NotRun(why)
