"""Sparse drop-ins for ``nn.Linear``, LSTM, GRU and attention made of Linear modules, and the machinery that makes a network sparse. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsefleet.nn.attention import MultiheadAttention
    from sparsefleet.nn.auto import AutoLinear
    from sparsefleet.nn.block import BlockLinear
    from sparsefleet.nn.coo import CooLinear
    from sparsefleet.nn.csr import CsrLinear
    from sparsefleet.nn.fixed_fan_in import FixedFanInLinear
    from sparsefleet.nn.layer_norm import LayerNorm
    from sparsefleet.nn.linear import SparseLinear
    from sparsefleet.nn.masked import MaskedLinear, MaskedModule
    from sparsefleet.nn.module import Remap, SparseModule, remap_sites
    from sparsefleet.nn.quantised import QuantisedLinear, QuantisedModule
    from sparsefleet.nn.recurrent import GRU, LSTM
    from sparsefleet.nn.sparsifier import Sparsifier
    from sparsefleet.nn.torch_sparse import TorchSparseLinear
    from sparsefleet.nn.two_four import TwoFourLinear

_HOME = {
    "GRU": "recurrent",
    "LSTM": "recurrent",
    "AutoLinear": "auto",
    "BlockLinear": "block",
    "CooLinear": "coo",
    "CsrLinear": "csr",
    "FixedFanInLinear": "fixed_fan_in",
    "LayerNorm": "layer_norm",
    "MaskedLinear": "masked",
    "MaskedModule": "masked",
    "MultiheadAttention": "attention",
    "QuantisedLinear": "quantised",
    "QuantisedModule": "quantised",
    "Remap": "module",
    "SparseLinear": "linear",
    "SparseModule": "module",
    "Sparsifier": "sparsifier",
    "TorchSparseLinear": "torch_sparse",
    "TwoFourLinear": "two_four",
    "remap_sites": "module",
}

__all__ = [
    "GRU",
    "LSTM",
    "AutoLinear",
    "BlockLinear",
    "CooLinear",
    "CsrLinear",
    "FixedFanInLinear",
    "LayerNorm",
    "MaskedLinear",
    "MaskedModule",
    "MultiheadAttention",
    "QuantisedLinear",
    "QuantisedModule",
    "Remap",
    "SparseLinear",
    "SparseModule",
    "Sparsifier",
    "TorchSparseLinear",
    "TwoFourLinear",
    "remap_sites",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"sparsefleet.nn.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sparsefleet.nn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
