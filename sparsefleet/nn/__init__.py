"""Sparse modules, and the machinery that makes a network sparse."""

from sparsefleet.nn.module import Remap, SparseModule, remap_sites

__all__ = ["Remap", "SparseModule", "remap_sites"]
