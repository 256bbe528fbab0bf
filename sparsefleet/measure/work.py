"""Counted work: passes over weights, layers, and a whole network at one batch. ``cost`` counts it, ``limits`` asks how long it must take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Op = Literal["forward", "step"]


@dataclass(frozen=True)
class Work:
    """One pass over a layer's weights.

    Attributes:
        what: ``forward``; ``backward`` (a sparse layer's fused pass for both gradients); ``grad_input``, ``grad_weight`` (dense).
        flops: two for each product of a weight and an activation, padding of convolutions included.
        weight_bytes: values and indices that are read, gradients of values that are written.
        activation_bytes: inputs, outputs and their gradients, each read or written once.
        gathers: rows of activations fetched by index; 0 for a dense product.
        row_bytes: of one such row over the whole batch.
        table_bytes: what the rows are fetched from.
    """

    what: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    gathers: int = 0
    row_bytes: int = 0
    table_bytes: int = 0

    @property
    def dram_bytes(self) -> int:
        """Bytes that stream through once: Q_D."""
        return self.weight_bytes + self.activation_bytes

    @property
    def gather_bytes(self) -> int:
        """Bytes fetched by index: Q_G."""
        return self.gathers * self.row_bytes


@dataclass(frozen=True)
class LayerCost:
    """One layer.

    Attributes:
        shape: ``(n_out, n_in)`` of the weight seen as a matrix; a convolution's kernel counts to n_in.
        rows: input rows that meet the weight: batch × positions.
        nnz: connections.
        sites: weights of the dense layer of this shape.
        stored_bytes: values, every index and masks, as they are resident.
        dense_bytes: the same weights, stored densely in the same type.
        kernel: elements of a convolution's kernel; 1 for Linear.
        works: the passes over its weights, in order.
    """

    name: str
    execution: str
    shape: tuple[int, int]
    rows: int
    nnz: int
    sites: int
    stored_bytes: int
    dense_bytes: int
    kernel: int
    works: tuple[Work, ...]

    @property
    def flops(self) -> int:
        """Of all passes."""
        return sum(work.flops for work in self.works)

    @property
    def dram_bytes(self) -> int:
        """Of all passes."""
        return sum(work.dram_bytes for work in self.works)

    @property
    def gather_bytes(self) -> int:
        """Of all passes."""
        return sum(work.gather_bytes for work in self.works)

    @property
    def compression(self) -> float:
        """Dense bytes over stored bytes, indices included: below 1 the sparse storage is the larger one."""
        return self.dense_bytes / self.stored_bytes if self.stored_bytes else 1.0


@dataclass(frozen=True)
class Cost:
    """A whole network at one batch.

    Attributes:
        params: trainable parameters; of a sparse layer its connections, however they are stored.
        params_dense: what they would be with every site connected.
        stored_bytes: parameters, indices, masks and buffers as they are resident, without the optimizer's state.
        dense_bytes: ``stored_bytes`` with every sparse layer stored densely.
        optimizer_bytes: what the optimizer's step reads and writes; 0 for a forward pass.
        working_set: bytes of weights, indices, gradients and slots that one call touches and the next one touches again.
    """

    op: Op
    precision: str
    layers: tuple[LayerCost, ...]
    params: int
    params_dense: int
    stored_bytes: int
    dense_bytes: int
    optimizer_bytes: int
    working_set: int

    @property
    def flops(self) -> int:
        """Products of the layers; the optimizer's arithmetic is not in it."""
        return sum(layer.flops for layer in self.layers)

    @property
    def dram_bytes(self) -> int:
        """Bytes that stream through once, the optimizer's included."""
        return sum(layer.dram_bytes for layer in self.layers) + self.optimizer_bytes

    @property
    def gather_bytes(self) -> int:
        """Bytes fetched by index."""
        return sum(layer.gather_bytes for layer in self.layers)

    @property
    def nnz(self) -> int:
        """Connections of all layers."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def compression(self) -> float:
        """Dense bytes over stored bytes of the whole network."""
        return self.dense_bytes / self.stored_bytes if self.stored_bytes else 1.0

    @property
    def weights_per_connection(self) -> float:
        """Weights of the dense layers over connections."""
        sites = sum(layer.sites for layer in self.layers)
        return sites / self.nnz if self.nnz else float("inf")
