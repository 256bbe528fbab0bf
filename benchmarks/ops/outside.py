"""Peers from packages that may be missing: torch-sparse and SparseProp."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import NotRun
from benchmarks.ops.peers import Peer
from sparsefleet.connections import Connections


def spmm(conn: Connections) -> Peer:
    """``torch_sparse.spmm``: gathers, multiplies and scatters rows, with torch's own gradient."""
    package = _package("torch_sparse", "torch-sparse")
    values, index = conn.weight.clone().requires_grad_(), torch.stack([conn.row, conn.col])
    n_out, n_in = conn.shape
    return Peer(lambda x: package.spmm(index, values, n_out, n_in, x.t()).t(), values, lambda grad: grad)


def sparse_tensor(conn: Connections) -> Peer:
    """``SparseTensor @``, made once: every call gets the values of now, and the pointers and the transpose of before."""
    values = conn.weight.clone().requires_grad_()
    matrix = _matrix(conn, values.detach()).fill_cache_()
    return _times(lambda: matrix.set_value(values, layout="coo"), values)


def sparse_tensor_new(conn: Connections) -> Peer:
    """``SparseTensor @``, made at every call, so that pointers and transpose are found anew."""
    values = conn.weight.clone().requires_grad_()
    return _times(lambda: _matrix(conn, values), values)


def _matrix(conn: Connections, values: Tensor) -> Any:
    package = _package("torch_sparse", "torch-sparse")
    return package.SparseTensor(row=conn.row, col=conn.col, value=values, sparse_sizes=conn.shape, is_sorted=True, trust_data=True)


def _times(matrix: Callable[[], Any], values: Tensor) -> Peer:
    return Peer(lambda x: (matrix() @ x.t()).t(), values, lambda grad: grad)


def sparseprop(conn: Connections) -> Peer:
    """SparseProp's kernels as its ``SparseLinear`` calls them, on arrays that lie already as the kernels want them, without its transposes."""
    kernels = _package("sparseprop", "sparseprop").backend
    values, (pointer, col) = conn.weight.clone().requires_grad_(), _csr(conn)
    n_out = conn.shape[0]

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            y = torch.zeros(n_out, x.shape[0])
            kernels.sparse_linear_vectorized_forward(x.t(), pointer, col, weight, y)
            return y.t()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            dx, dw = torch.zeros(x.shape[1], x.shape[0]), torch.zeros_like(weight)
            kernels.sparse_linear_vectorized_backward(x.t(), pointer, col, weight, grads[0].t(), dx, dw)
            return dx.t(), dw

    return Peer(lambda x: Product.apply(x, values), values, lambda grad: grad)


def sparseprop_module(conn: Connections) -> Peer:
    """SparseProp's own ``SparseLinear``: row-major in and out, transposed on the way by its own kernel."""
    function = _package("sparseprop.modules.functions", "sparseprop").SparseLinearFunction
    values, index = conn.weight.clone().requires_grad_(), _csr(conn)
    return Peer(lambda x: function.apply(x, values, index, None, conn.shape[0]), values, lambda grad: grad)


def _csr(conn: Connections) -> tuple[Tensor, Tensor]:
    rows = torch.arange(conn.shape[0] + 1)
    return torch.searchsorted(conn.row, rows, out_int32=True), conn.col.int()


def _package(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise NotRun(f"{name} is not installed") from error
    except OSError as error:  # built for another torch
        raise NotRun(f"{name} does not load: {str(error).splitlines()[0]}") from error
