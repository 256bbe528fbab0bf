"""One sparse matrix in the hands of each peer: a callable of the input, differentiable by input and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.figures import NotRun
from benchmarks.ops import cases
from benchmarks.ops.cases import FEATURE_MAJOR, ROW_MAJOR, Shape
from sparsefleet.connections import Connections
from sparsefleet.ops.csr import csr_linear, csr_pattern


@dataclass(frozen=True)
class Peer:
    """A way to multiply.

    Attributes:
        forward: ``(batch, n_in)`` to ``(batch, n_out)``.
        weight: what gradients are taken by, and what the optimizer moves.
        values_of: of a gradient by ``weight`` the ``(nnz,)`` values at the connections, ascending.
        module: of ours, whose work is counted.
    """

    forward: Callable[[Tensor], Tensor]
    weight: Tensor
    values_of: Callable[[Tensor], Tensor]
    module: nn.Module | None = None


@dataclass(frozen=True)
class Kind:
    """How a peer is made, and what has to be known beforehand.

    Attributes:
        needs: bytes of one training step with momentum, by shape and batch.
        layouts: of input and output that it can take: tried in a short race, the fastest counts.
        precision: decides how exact it has to be, and the type of its inputs.
        device: the only kind of device it runs on; empty for any.
    """

    make: Callable[[Connections], Peer]
    needs: Callable[[Shape, int], int]
    layouts: tuple[str, ...] = (ROW_MAJOR, FEATURE_MAJOR)
    precision: str = "fp32"
    device: str = ""


def ours(conn: Connections) -> Peer:
    """The layer that this package is proud of; where rows come in contiguous, they go out so."""
    from sparsefleet.nn import FixedFanInLinear
    from sparsefleet.ops import row_major

    module = FixedFanInLinear.from_connections(conn, None)
    return Peer(
        lambda x: row_major(module(x)) if x.is_contiguous() else module(x), module.weight_parameter, lambda grad: grad.reshape(-1), module
    )


def dense(conn: Connections) -> Peer:
    """``F.linear`` with the dense matrix, as it is."""
    weight = _dense_weight(conn)
    return Peer(lambda x: F.linear(x, weight), weight, lambda grad: grad[conn.row, conn.col])


def dense_compiled(conn: Connections) -> Peer:
    """``F.linear`` under torch.compile."""
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # the backward pass is timed again and again over one graph
    weight = _dense_weight(conn)
    call = torch.compile(F.linear, dynamic=False)
    return Peer(lambda x: call(x, weight), weight, lambda grad: grad[conn.row, conn.col])


def dense_tf32(conn: Connections) -> Peer:
    """``F.linear`` with TF32 tensor cores; nothing else in its process uses them."""
    torch.set_float32_matmul_precision("high")
    return dense(conn)


def dense_bf16(conn: Connections) -> Peer:
    """``F.linear`` in bf16: weight, activations and gradients."""
    weight = _dense_weight(conn).detach().bfloat16().requires_grad_()
    return Peer(lambda x: F.linear(x, weight), weight, lambda grad: grad[conn.row, conn.col].float())


def masked(conn: Connections) -> Peer:
    """A dense weight times a mask at every call."""
    weight = _dense_weight(conn)
    mask = torch.zeros(conn.shape, dtype=torch.bool, device=weight.device)
    mask[conn.row, conn.col] = True
    return Peer(lambda x: F.linear(x, weight * mask), weight, lambda grad: grad[conn.row, conn.col])


def torch_csr_sddmm(conn: Connections) -> Peer:
    """CSR with a cached transpose and a sampled product for the weights' gradient: the package's own fallback in plain torch."""
    values, pattern = conn.weight.clone().requires_grad_(), csr_pattern(conn.row, conn.col, conn.shape)
    return Peer(lambda x: csr_linear(x, values, pattern), values, _same)


def torch_csr(conn: Connections) -> Peer:
    """``torch.sparse.mm`` of a CSR tensor, with torch's own gradient."""
    coo = torch.sparse_coo_tensor(_index(conn), conn.weight.clone(), conn.shape, is_coalesced=True, check_invariants=False)
    weight = coo.to_sparse_csr().requires_grad_()
    return Peer(lambda x: torch.sparse.mm(weight, x.t()).t(), weight, lambda grad: _at(grad, conn))


def torch_coo(conn: Connections) -> Peer:
    """``torch.sparse.mm`` of a COO tensor, with torch's own gradient; the optimizer sees the values, since it is slower on a COO tensor."""
    values, index = conn.weight.clone().requires_grad_(), _index(conn)

    def forward(x: Tensor) -> Tensor:
        weight = torch.sparse_coo_tensor(index, values, conn.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(weight, x.t()).t()

    return Peer(forward, values, _same)


def _dense_weight(conn: Connections) -> Tensor:
    weight = torch.zeros(conn.shape, device=conn.weight.device)
    weight[conn.row, conn.col] = conn.weight
    return weight.requires_grad_()


def _index(conn: Connections) -> Tensor:
    return torch.stack([conn.row, conn.col])


def _same(grad: Tensor) -> Tensor:
    return grad


def _at(grad: Tensor, conn: Connections) -> Tensor:
    """``(nnz,)``: of a gradient that torch returns dense or in CSR."""
    if grad.layout == torch.strided:
        return grad[conn.row, conn.col]
    if grad.values().numel() != conn.weight.numel():
        raise NotRun(f"a gradient of {grad.values().numel():,} values for {conn.weight.numel():,} connections")
    return grad.values()


def _dense_bytes(copies: float) -> Callable[[Shape, int], int]:
    return lambda shape, batch: int(copies * shape.sites) + _activations(shape, batch)


def _sparse_bytes(per_connection: float, per_product: float = 0.0) -> Callable[[Shape, int], int]:
    return lambda shape, batch: int(shape.nnz * (per_connection + per_product * batch)) + _activations(shape, batch)


def _activations(shape: Shape, batch: int) -> int:
    return 4 * batch * 16 * (shape.n_in + shape.n_out)  # the rotating inputs and gradients of two sides


def kinds() -> dict[str, Kind]:
    """Every peer by its name, in the order it is measured."""
    from benchmarks.ops import outside

    found = {
        cases.DENSE: Kind(dense, _dense_bytes(12), (ROW_MAJOR,)),  # weight, gradient, momentum
        cases.DENSE_COMPILED: Kind(dense_compiled, _dense_bytes(12), (ROW_MAJOR,)),
        cases.DENSE_TF32: Kind(dense_tf32, _dense_bytes(12), (ROW_MAJOR,), "tf32", "cuda"),
        cases.DENSE_BF16: Kind(dense_bf16, _dense_bytes(10), (ROW_MAJOR,), "bf16", "cuda"),
        cases.MASKED: Kind(masked, _dense_bytes(21), (ROW_MAJOR,)),  # and mask, product and the product's gradient
        cases.TORCH_SDDMM: Kind(torch_csr_sddmm, _sparse_bytes(80)),
        cases.TORCH_CSR: Kind(torch_csr, _sparse_bytes(160)),
        cases.TORCH_COO: Kind(torch_coo, lambda shape, batch: 4 * shape.sites + _sparse_bytes(120)(shape, batch)),  # a dense gradient
        cases.SPMM: Kind(outside.spmm, _sparse_bytes(60, 16)),  # gathered and multiplied rows, forward and backward
        cases.SPARSE_TENSOR: Kind(outside.sparse_tensor, _sparse_bytes(120)),
        cases.SPARSE_TENSOR_NEW: Kind(outside.sparse_tensor_new, _sparse_bytes(120)),
        cases.SPARSEPROP: Kind(outside.sparseprop, _sparse_bytes(40), (FEATURE_MAJOR,), device="cpu"),
        cases.SPARSEPROP_MODULE: Kind(outside.sparseprop_module, _sparse_bytes(40), (ROW_MAJOR,), device="cpu"),
    }
    assert found.keys() == cases.NAMES.keys()
    return found


OURS = Kind(ours, _sparse_bytes(80))
