"""The cases: which layer, which batch, which peers, which targets. Imports no torch, so that ``--help`` is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["ratio", "forward_ratio", "row_major_ratio", "peak_ratio", "limit_forward", "limit_backward", "break_even"]

ROW_MAJOR, FEATURE_MAJOR = "row-major", "feature-major"
"""Layouts of activations: logical (batch, features) with strides (features, 1), or (1, batch)."""
MAIN = "forward+backward"
"""The operation that ratios are by."""
OPS = ("forward", "backward", MAIN, "step")


@dataclass(frozen=True)
class Shape:
    """A layer with the same number of connections at every output unit."""

    n_in: int
    n_out: int
    density: float

    @property
    def fan_in(self) -> int:
        """Connections of one output unit: the density times the inputs, rounded, at least 1."""
        return min(self.n_in, max(1, round(self.density * self.n_in)))

    @property
    def nnz(self) -> int:
        """Connections."""
        return self.n_out * self.fan_in

    @property
    def sites(self) -> int:
        """Weights of the dense layer."""
        return self.n_in * self.n_out

    def __str__(self) -> str:
        return f"{self.n_in}→{self.n_out}, {100 * (1 - self.density):g} %"


@dataclass(frozen=True)
class Target:
    """A limit for one figure of a case.

    Attributes:
        against: the peer; empty where there is none.
        least: a lower limit; of ``break_even`` the upper one.
        device: the kind of device that it holds for.
    """

    measure: Measure
    against: str
    least: float
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """What is measured under one name.

    Attributes:
        shapes: one, or several of which the break-even sparsity follows.
        threads: on a CPU; None for as many as the process may use.
        peers: their names; empty for all.
        minutes: about, on two cores.
    """

    id: str
    shapes: tuple[Shape, ...]
    batch: int
    targets: tuple[Target, ...] = ()
    threads: int | None = None
    peers: tuple[str, ...] = ()
    minutes: float = 5.0

    @property
    def title(self) -> str:
        """For people."""
        first = self.shapes[0]
        sparsity = " / ".join(f"{100 * (1 - shape.density):g}" for shape in self.shapes)
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{first.n_in}→{first.n_out}, {sparsity} %, batch {self.batch}{threads}"


DENSE, DENSE_COMPILED, DENSE_TF32, DENSE_BF16, MASKED = "dense", "dense-compiled", "dense-tf32", "dense-bf16", "masked"
TORCH_SDDMM, TORCH_CSR, TORCH_COO = "torch-csr-sddmm", "torch-csr", "torch-coo"
SPMM, SPARSE_TENSOR, SPARSE_TENSOR_NEW = "torch_sparse.spmm", "SparseTensor @", "SparseTensor @ new"
SPARSEPROP, SPARSEPROP_MODULE = "sparseprop", "sparseprop-module"
NAMES = {
    DENSE: "F.linear with the dense matrix, fp32",
    DENSE_COMPILED: "the same under torch.compile",
    DENSE_TF32: "the same with TF32 tensor cores (GPU)",
    DENSE_BF16: "the same in bf16 (GPU)",
    MASKED: "a dense weight times a mask; its time is told, and is no speed-up of anything",
    TORCH_SDDMM: "CSR, cached transpose and sampled product, in plain torch",
    TORCH_CSR: "torch.sparse.mm of a CSR tensor with torch's own gradient",
    TORCH_COO: "torch.sparse.mm of a COO tensor with torch's own gradient",
    SPMM: "torch_sparse.spmm(index, value, ...)",
    SPARSE_TENSOR: "SparseTensor @, made once with all its caches filled",
    SPARSE_TENSOR_NEW: "SparseTensor @, made anew at every call (only where asked for)",
    SPARSEPROP: "SparseProp's kernels on arrays in their own layout, without a transpose (CPU)",
    SPARSEPROP_MODULE: "SparseProp's SparseLinear as it is, which transposes in and out (CPU)",
}
"""Every peer, in the order it is measured."""
ONLY_IF_ASKED = (SPARSE_TENSOR_NEW,)

_LIMITS = (Target("limit_forward", "", 50.0), Target("limit_backward", "", 50.0))
_GPU_LIMITS = (Target("limit_forward", "", 60.0, "cuda"), Target("limit_backward", "", 60.0, "cuda"))
_WIDE, _WIDEST = (Shape(20_000, 20_000, 0.01),), (Shape(50_000, 50_000, 0.001),)

CASES = {
    case.id: case
    for case in (
        Case("a", (Shape(784, 2000, 0.1),), 64, (Target("ratio", DENSE, 2.5),), minutes=6),
        Case("b1", _WIDE, 1, (Target("forward_ratio", DENSE, 25.0), Target("ratio", DENSE, 40.0)), minutes=9),
        Case(
            "b64",
            _WIDE,
            64,
            (
                Target("ratio", SPMM, 45.0),
                Target("ratio", SPARSE_TENSOR, 20.0),
                Target("ratio", DENSE, 28.0),
                Target("ratio", TORCH_SDDMM, 2.0),
                Target("peak_ratio", DENSE, 30.0),
                *_LIMITS,
                *_GPU_LIMITS,
            ),
            minutes=14,
        ),
        Case(
            "c64",
            _WIDEST,
            64,
            (
                Target("ratio", TORCH_SDDMM, 2.0),
                *_LIMITS,
                *_GPU_LIMITS,
                Target("ratio", DENSE_TF32, 18.0, "cuda"),
                Target("ratio", SPMM, 6.0, "cuda"),
            ),
            minutes=7,
        ),
        Case("c256", _WIDEST, 256, _GPU_LIMITS, minutes=9),
        Case(
            "mid",
            tuple(Shape(4096, 4096, density) for density in (0.2, 0.1, 0.05)),
            64,
            (Target("break_even", DENSE, 85.0),),
            peers=(DENSE, DENSE_COMPILED, TORCH_SDDMM, SPARSE_TENSOR),
            minutes=12,
        ),
        Case(
            "sparseprop",
            (Shape(768, 3072, 0.02),),
            2048,
            (Target("ratio", SPARSEPROP, 3.0), Target("row_major_ratio", SPARSEPROP_MODULE, 2.0)),
            threads=1,
            minutes=8,
        ),
    )
}


def free_case(n_in: int, n_out: int, density: float, batch: int) -> Case:
    """A case of one's own, without targets; shapes of their own share no place in the results."""
    return Case(f"{n_in}x{n_out}-{density:g}-{batch}", (Shape(n_in, n_out, density),), batch)


def peer_called(text: str) -> str | None:
    """The peer's name, however its letters are written: ``sparsetensor`` is ``SparseTensor @``."""

    def plain(name: str) -> str:
        return "".join(letter for letter in name.lower() if letter.isalnum())

    return {plain(name): name for name in NAMES}.get(plain(text))
