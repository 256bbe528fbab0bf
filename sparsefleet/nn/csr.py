"""CsrLinear: any pattern, ``(nnz,)`` values."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefleet.nn.indexed import IndexedLinear


class CsrLinear(IndexedLinear):
    """A ``SparseLinear`` in CSR: holds any pattern, with ``(nnz,)`` values in ascending order of (row, column)."""

    execution = "sparse_csr"
    indices = ("crow", "col")

    def _rows_of(self, stored: dict[str, Tensor]) -> Tensor | str:
        crow = stored["crow"].long()
        if crow.shape != (self.out_features + 1,):
            return f"a row pointer of {crow.numel()}, expected {self.out_features + 1}"
        per_row, nnz = crow.diff(), stored["col"].numel()
        low, high = (int(end) for end in torch.aminmax(crow))  # beyond these a difference could wrap around
        if low < 0 or high > nnz or int(crow[0]) != 0 or int(crow[-1]) != nnz or bool((per_row < 0).any()):
            return f"the row pointer does not divide {nnz} connections into rows"
        return torch.repeat_interleave(per_row)
