"""Sparse kernels behind ``torch.library``: C on the CPU, Triton on CUDA, plain torch where neither is."""

from sparsefleet.ops.linear import Engine, engine, feature_major, row_major, sparse_linear
from sparsefleet.ops.merge import merge_sites, positions, split_sites, taken
from sparsefleet.ops.norm import layer_norm
from sparsefleet.ops.pattern import Pattern, pattern_from, pattern_of

__all__ = [
    "Engine",
    "Pattern",
    "engine",
    "feature_major",
    "layer_norm",
    "merge_sites",
    "pattern_from",
    "pattern_of",
    "positions",
    "row_major",
    "sparse_linear",
    "split_sites",
    "taken",
]
