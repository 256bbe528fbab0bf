"""The share of possible connections that have ever been live: R_s of in-time over-parameterisation (arXiv 2102.02887).

Exact, in the smaller of two memories per layer: the sorted union of sites at 8 bytes each, or one bit for every possible site. A layer
starts with the union and moves to bits once they are the smaller, so it never takes more than ``n_sites / 8`` bytes, nor by more than
what has been live.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST_BYTES = 2**30
_STEP = 1 << 22


class Explored:
    """What has ever been live in each layer, on the CPU.

    Args:
        n_sites: possible connections by layer name.
        most_bytes: memory of all layers together; past it nothing more is kept, and ``fraction`` is unknown.
    """

    def __init__(self, n_sites: Mapping[str, int], most_bytes: int = MOST_BYTES) -> None:
        self._n_sites, self._most_bytes = dict(n_sites), most_bytes
        self._seen = {name: torch.empty(0, dtype=torch.int64) for name in n_sites}
        self._count = dict.fromkeys(n_sites, 0)
        self.stopped = False
        """More would have been needed than ``most_bytes``."""

    @property
    def n_bytes(self) -> int:
        """Bytes that are held."""
        return sum(seen.numel() * seen.element_size() for seen in self._seen.values())

    @property
    def fraction(self) -> float | None:
        """Sites ever live over possible ones, of all layers together; None once the memory did not suffice."""
        n_sites = sum(self._n_sites.values())
        return None if self.stopped or not n_sites else sum(self._count.values()) / n_sites

    def add(self, name: str, flat: Tensor) -> None:
        """Notes sites that are live: all of them, or those that are new.

        Args:
            name: the layer.
            flat: ``(n,)`` int64 ascending different sites, on any device.
        """
        if self.stopped or not flat.numel():
            return
        flat, seen = flat.cpu(), self._seen[name]
        if seen.dtype == torch.int64:
            fresh = flat[~_among(flat, seen)]
            wide, bits = 8 * (seen.numel() + fresh.numel()), -(-self._n_sites[name] // 8)
            if self.n_bytes - 8 * seen.numel() + min(wide, bits) > self._most_bytes:
                self._stop()
                return
            if wide <= bits:
                self._seen[name] = _merged(seen, fresh)
                self._count[name] = self._seen[name].numel()
                return
            self._seen[name] = torch.zeros(bits, dtype=torch.uint8)
            self._count[name] = _mark(self._seen[name], seen)
        self._count[name] += _mark(self._seen[name], flat)

    def _stop(self) -> None:
        self.stopped = True
        self._seen = {name: torch.empty(0, dtype=torch.int64) for name in self._seen}

    def state(self) -> dict[str, Tensor]:
        """By layer name: ``(n,)`` int64 sites, or ``(ceil(n_sites / 8),)`` uint8 bits, lowest site in the lowest bit; nothing once it stopped."""
        return {} if self.stopped else dict(self._seen)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from ``state()``."""
        self.stopped = not state and bool(self._n_sites)
        for name, seen in state.items():
            self._seen[name] = seen.cpu()
            self._count[name] = seen.numel() if seen.dtype == torch.int64 else _n_set(seen)


def _among(flat: Tensor, seen: Tensor) -> Tensor:
    """``(n,)`` bool: which of ``flat`` are in ``seen``; both ascend."""
    if not seen.numel():
        return torch.zeros(flat.shape, dtype=torch.bool)
    at = torch.searchsorted(seen, flat).clamp_(max=seen.numel() - 1)
    return seen[at] == flat


def _merged(seen: Tensor, fresh: Tensor) -> Tensor:
    """Both, ascending; they have nothing in common."""
    if not (seen.numel() and fresh.numel()):
        return seen if seen.numel() else fresh.clone()
    out = torch.empty(seen.numel() + fresh.numel(), dtype=torch.int64)
    place = torch.searchsorted(seen, fresh).add_(torch.arange(fresh.numel()))
    old = torch.ones(out.shape, dtype=torch.bool)
    old[place] = False
    out[place] = fresh
    return out.masked_scatter_(old, seen)


def _mark(bits: Tensor, flat: Tensor) -> int:
    """Sets the bits of different sites; how many were not set before."""
    fresh = 0
    for start in range(0, flat.numel(), _STEP):
        part = flat[start : start + _STEP]
        for bit in range(8):  # sites of one bit lie in different bytes
            byte = part[(part & 7) == bit] >> 3
            held = bits[byte]
            fresh += int(torch.count_nonzero((held >> bit & 1) == 0))
            bits[byte] = held | (1 << bit)
    return fresh


def _n_set(bits: Tensor) -> int:
    return sum(int(torch.count_nonzero(bits >> bit & 1)) for bit in range(8))
