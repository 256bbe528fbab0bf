"""SparseModule: what the core needs of a layer that can be pruned or rewired."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import PluginError
from sparsefleet.ops import merge_sites, positions, taken
from sparsefleet.rng import Rng, uniform_at


@dataclass(frozen=True)
class Remap:
    """How the connections after a topology change relate to those before.

    Attributes:
        source: ``(nnz_new,)`` integer: position among the old connections, or -1 for a grown one; new order is ascending by site.
        grown: ``(m,)`` int64 flat sites that are new.
        flat: ``(nnz_new,)`` int64 all flat sites, ascending.
        before: ``(nnz,)`` int64 the flat sites that were.
        stays: ``(nnz,)`` bool which of them stay.
        n_twice: how many grown ones stayed anyway; a mistake.
    """

    source: Tensor
    grown: Tensor
    flat: Tensor
    before: Tensor
    stays: Tensor
    n_twice: int

    @property
    def n_dropped(self) -> int:
        """How many are gone."""
        return self.before.numel() - (self.flat.numel() - self.grown.numel())

    @cached_property
    def dropped(self) -> Tensor:
        """``(n_dropped,)`` int64 flat sites that are gone."""
        return self.before[~self.stays]

    def gather(self, values: Tensor) -> Tensor:
        """``(nnz_new,)``: old per-connection values in the new order, zeros at grown connections."""
        if not values.numel():
            return values.new_zeros(self.source.shape)
        return taken(values, self.source)

    @cached_property
    def is_new(self) -> Tensor:
        """``(nnz_new,)`` bool: the grown ones."""
        return self.source < 0


class SparseModule(nn.Module):
    """A module whose weight is a set of connections.

    ``method_state`` holds the method's ``(nnz,)`` tensors, which the core re-indexes, ``dense_state`` its ``(n_out, n_in)`` ones, and
    ``method_memory`` those of any shape; all are checkpointed. Connections are always listed in ascending order of ``row * n_in + col``,
    whatever the storage.
    """

    layer_name: str = ""
    execution: str = ""
    kernel: int = 1
    """Elements of a convolution's kernel."""
    keeps_absent: bool = False
    """Dense-stored modules only: absent weights keep their stored value, for methods that let connections return."""
    is_last: bool = False
    """The network's output layer."""
    topology: Literal["free", "constant-fan-in", "block", "n:m"] = "free"
    """What its connections must always be, or must be when they move to the layer that the trial asks for."""
    tile: int = 1
    """Units per side of a block, for ``block``."""
    init_key: int = 0
    """Key of the counter-based draws of the initial weights."""

    def __init__(self) -> None:
        super().__init__()
        self.method_state: dict[str, Tensor] = {}
        self.dense_state: dict[str, Tensor] = {}
        self.method_memory: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """``(n_out, n_in)`` of the weight seen as a matrix."""

    @property
    @abstractmethod
    def weight_parameter(self) -> nn.Parameter:
        """The Parameter that holds the weights; the same object for the module's whole life."""

    @abstractmethod
    def flat_sites(self) -> Tensor:
        """``(nnz,)`` int64, ascending."""

    @abstractmethod
    def values(self) -> Tensor:
        """``(nnz,)`` weights, detached; a view where the storage allows one."""

    @abstractmethod
    def grad_values(self) -> Tensor | None:
        """``(nnz,)`` gradient of the weights, or None before the first backward."""

    @abstractmethod
    def write_values(self, values: Tensor) -> None:
        """Stores ``(nnz,)`` weights."""

    def as_stored(self, values: Tensor) -> Tensor:
        """``(nnz,)`` values of the connections, e.g. an optimizer's slot, in the Parameter's shape and order."""
        return values.view_as(self.weight_parameter)

    @abstractmethod
    def set_topology(self, remap: Remap, values: Tensor) -> None:
        """Takes over new sites and their ``(nnz_new,)`` weights; the Parameter object stays."""

    @abstractmethod
    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        """An optimizer slot or gradient of the weight's old shape, for the new topology: zero wherever a connection was dropped or grown."""

    @abstractmethod
    def watch_absent(self, on: bool) -> None:
        """Whether the coming backward passes keep, together, what ``best_absent`` needs; what was kept is forgotten."""

    @abstractmethod
    def best_absent(self, present: Tensor, k: int) -> Tensor:
        """``(2, k)`` sites outside ``present`` with the largest gradients by magnitude, summed over the backward passes since watching began."""

    def best_absent_per_row(self, present: Tensor, counts: Tensor) -> Tensor:
        """``(2, sum(counts))`` sites outside ``present``: of every output unit as many as asked, as ``best_absent`` ranks them."""
        raise PluginError(f"{type(self).__name__} does not rank the gradient of absent sites within output units")

    @property
    def nnz(self) -> int:
        """Number of stored connections."""
        return self.flat_sites().numel()

    @property
    def value_bits(self) -> int:
        """Bits of one weight where the trained network is stored."""
        return 8 * self.weight_parameter.element_size()

    @property
    def scale_bytes(self) -> int:
        """Bytes of what turns stored weights into those that are multiplied."""
        return 0

    def multiplied(self) -> Tensor:
        """``(nnz,)`` weights that the product is made with, detached; others than ``values`` where it rounds them."""
        return self.values()

    def enforce(self) -> None:
        """Called after every optimizer step: absent weights are zero again, whatever the optimizer did."""

    def sites(self) -> tuple[Tensor, Tensor]:
        """``(nnz,)`` int64 output units and ``(nnz,)`` int64 input units, ascending."""
        flat, (_, n_in) = self.flat_sites(), self.matrix_shape
        return flat // n_in, flat % n_in

    def initial_draw(self, flat: Tensor) -> Tensor:
        """``(k,)`` float64 in [-1, 1): the draws behind the initial weights of flat sites, live or not."""
        return uniform_at(self.init_key, flat).mul_(2).sub_(1)

    def connections(self, rng: Rng | None = None) -> Connections:
        """The module's connections as a method plugin sees them."""
        row, col = self.sites()
        return Connections(
            layer=self.layer_name,
            shape=self.matrix_shape,
            row=row,
            col=col,
            weight=self.values(),
            grad=self.grad_values(),
            state=dict(self.method_state),
            memory=self.method_memory,
            rng=rng or Rng("unseeded", self.layer_name),
            best_absent_by_gradient=self.best_absent,
            best_absent_per_row_by_gradient=self.best_absent_per_row,
            constant_fan_in=self.topology == "constant-fan-in",
            kernel=self.kernel,
            tile=self.tile,
            is_last=self.is_last,
            initial_draw=self.initial_draw,
        )


def remap_sites(flat: Tensor, keep: Tensor, new: Tensor, *, regrown_are_kept: bool) -> Remap:
    """The change from sites ``flat`` to ``flat[keep]`` and ``new``.

    Args:
        flat: ``(nnz,)`` int64 ascending.
        keep: ``(nnz,)`` bool.
        new: ``(k,)`` int64 flat sites, ascending; may hold just-dropped ones, and those that are kept are counted.
        regrown_are_kept: a site that is dropped and grown at once is as if it had stayed; otherwise it starts anew.
    """
    if keep.dtype != torch.bool or keep.shape != flat.shape:
        raise PluginError(f"what stays must be ({flat.numel()},) bool, got {tuple(keep.shape)} {keep.dtype}")
    stays = keep
    if regrown_are_kept and new.numel() and flat.numel():
        at = positions(flat, new)
        returned = at >= 0
        if bool(returned.any()):
            stays = keep.index_fill(0, at[returned], True)
            new = new[~returned]
    sites, source, n_twice = merge_sites(flat, stays, new)
    return Remap(source=source, grown=new, flat=sites, before=flat, stays=stays, n_twice=n_twice)
