"""What a sparse product is given: what it refuses, in which precision it computes, and what it answers where there is nothing to multiply."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsefleet.errors import UserError


def refuse_misfits(x: Tensor, n_in: int, of: str = "a sparse layer") -> None:
    """Refuses what would be computed wrongly.

    Raises:
        UserError: another width, or numbers that are not real floating-point ones.
    """
    if x.dim() == 0 or x.shape[-1] != n_in:
        raise UserError(f"{of} takes (..., {n_in}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise UserError(f"{of} takes real floating-point numbers, got {x.dtype}", fix="convert with .float()")


def refuse_tangents(*parts: Tensor | None) -> None:
    """Forward-mode derivatives, which torch would take for zero.

    Raises:
        UserError: one of the tensors has a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(part is not None and forward_ad.unpack_dual(part).tangent is not None for part in parts):  # type: ignore[no-untyped-call]
        raise UserError("the sparse kernels have no forward-mode derivative", fix="use backward(), or layer masked")


def wide(*parts: Tensor) -> torch.dtype:
    """float64 if one of the operands is; else float32: the libraries behind have no half precision on every device."""
    return torch.float64 if torch.float64 in [part.dtype for part in parts] else torch.float32


def nothing(x: Tensor, values: Tensor, n_out: int, dtype: torch.dtype) -> Tensor:
    """``(batch, n_out)`` zeros that follow from ``x`` and ``values``, where one of them is empty: the libraries refuse empty operands.

    Args:
        x: ``(batch, n_in)``.
    """
    return x.new_zeros((x.shape[0], n_out), dtype=dtype) + (x[:0].sum() + values[:0].sum()).to(dtype)
