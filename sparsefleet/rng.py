"""Counter-based random numbers: a value is a pure function of (key, position).

Nothing here has hidden state that a checkpoint could lose, and no draw depends on the storage of a layer, on the device or on the
process: the dense twin, ``masked`` and every sparse storage of one seed read the same numbers. The mixing function is SplitMix64's
finaliser (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, Fig. 13), evaluated in wrapping int64.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_CHUNK = 1 << 20
_IN_CACHE = 1 << 15
_NONE = 2**63 - 1
_GROUPS = 1 << 16


def key_of(*parts: object) -> int:
    """A signed 64-bit key from any printable parts, the same in every process (no ``hash()``)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # logical, where int64's own shift keeps the sign


def hash_positions(key: int, positions: Tensor) -> Tensor:
    """63-bit non-negative integers, one per position.

    Args:
        positions: int64, any shape.
    """
    out = torch.empty_like(positions, memory_format=torch.contiguous_format)
    flat_in, flat_out = positions.reshape(-1), out.view(-1)
    step = _CHUNK if positions.device.type != "cpu" else _IN_CACHE
    for start in range(0, flat_in.numel(), step):
        z = torch.add(flat_in[start : start + step], 1).mul_(_GOLDEN).add_(key)
        z = z.bitwise_xor_(_shift_right(z, 30)).mul_(_MIX_1)
        z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_MIX_2)
        flat_out[start : start + step] = _shift_right(z.bitwise_xor_(_shift_right(z, 31)), 1)
    return out


def uniform_at(key: int, positions: Tensor) -> Tensor:
    """Uniform float64 in [0, 1), one per position, 53 bits each."""
    out = torch.empty(positions.shape, dtype=torch.float64, device=positions.device)
    flat_in, flat_out = positions.reshape(-1), out.view(-1)
    for start in range(0, flat_in.numel(), _CHUNK):  # bounded temporaries: a dense twin asks for 10^7 positions
        part = hash_positions(key, flat_in[start : start + _CHUNK])
        flat_out[start : start + _CHUNK] = (part >> 10).to(torch.float64) * 2.0**-53
    return out


class Rng:
    """A stream of draws under one key; ``counter`` is its only state.

    Args:
        *parts: what the stream is for, e.g. ``Rng(seed, "rewire", layer, step)``.
    """

    def __init__(self, *parts: object, counter: int = 0) -> None:
        self.key = key_of(*parts)
        self.counter = counter

    def spawn(self, *parts: object) -> Rng:
        """An independent stream under this one's key."""
        return Rng(self.key, *parts)

    def _take(self, n: int, device: torch.device | str | None) -> Tensor:
        positions = torch.arange(self.counter, self.counter + n, device=device)
        self.counter += n
        return positions

    def at(self, positions: Tensor) -> Tensor:
        """Uniform float64 in [0, 1), one per position: the same position has the same value in any order, storage or call."""
        return uniform_at(self.key, positions)

    def uniform(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """``(n,)`` float64 in [0, 1)."""
        return uniform_at(self.key, self._take(n, device))

    def normal(self, n: int, device: torch.device | str | None = None) -> Tensor:
        """``(n,)`` standard normal float64 (Box–Muller)."""
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(n, device)))
        return radius * torch.cos(2.0 * math.pi * self.uniform(n, device))

    def integers(self, n: int, high: int, device: torch.device | str | None = None) -> Tensor:
        """``(n,)`` int64 in [0, high); the modulo's bias is below ``high / 2**63``."""
        if high <= 0:
            raise ValueError(f"high must be positive, got {high}")
        return hash_positions(self.key, self._take(n, device)) % high

    def distinct(self, n: int, high: int, device: torch.device | str | None = None) -> Tensor:
        """``(n,)`` different int64 of [0, high), ascending; memory O(n) for any ``high``, every subset equally likely."""
        if not 0 <= n <= high:
            raise ValueError(f"cannot draw {n} different values of {high}")
        if 2 * n > high:  # memory is O(n) here too: high < 2n
            order = torch.argsort(self.uniform(high, device), stable=True)
            return torch.sort(order[:n]).values
        chosen = torch.empty(0, dtype=torch.int64, device=device)
        while chosen.numel() < n:
            chosen = _with(chosen, torch.unique(self.integers(n - chosen.numel(), high, device)))
        return chosen

    def distinct_in_groups(self, counts: Tensor, sizes: Tensor) -> Tensor:
        """``(sum(counts),)`` int64 ascending: of every group ``counts[g]`` different places, every subset of a group equally likely.

        The places of group g are numbered from the sum of the sizes before it on. Memory is O(sum(counts) + groups), whatever the sizes.

        Args:
            counts: ``(groups,)`` int64.
            sizes: ``(groups,)`` int64, each at least its count.
        """
        if bool((counts < 0).any()) or bool((counts > sizes).any()):
            raise ValueError("a group has fewer places than are asked of it")
        upto = torch.cumsum(counts, 0)
        start, first, n = 0, 0, counts.numel()
        out = torch.empty(int(upto[-1]) if n else 0, dtype=torch.int64, device=counts.device)
        while start < n:  # bounded temporaries: at most _CHUNK draws, or those of one group, at a time
            drawn = int(upto[start]) - int(counts[start])
            end = max(start + 1, int(torch.searchsorted(upto, drawn + _CHUNK, right=True)))
            part = slice(start, min(end, start + _GROUPS))
            torch.add(self._distinct_in_groups(counts[part], sizes[part]), first, out=out[drawn : int(upto[part.stop - 1])])
            start, first = part.stop, first + int(sizes[part].sum())
        return out

    def _distinct_in_groups(self, counts: Tensor, sizes: Tensor) -> Tensor:
        crowded = 2 * counts > sizes  # there, what is left out is drawn, so that redrawing collisions comes to an end
        drawn = torch.where(crowded, sizes - counts, counts)
        chosen, lacking = torch.empty(0, dtype=torch.int64, device=counts.device), drawn
        last = torch.cumsum(sizes, 0)
        first = last - sizes
        while bool(lacking.any()):
            group = torch.repeat_interleave(lacking)
            fresh = (hash_positions(self.key, self._take(group.numel(), counts.device)) % sizes[group]).add_(first[group])
            chosen = _with(chosen, _sorted_in_groups(fresh, lacking, group))
            lacking = drawn - torch.diff(torch.searchsorted(chosen, last), prepend=last.new_zeros(1))
        if not bool(crowded.any()):
            return chosen
        out = crowded[torch.searchsorted(last, chosen, right=True)]
        full = torch.repeat_interleave(crowded * sizes)
        begin = torch.cumsum(crowded * sizes, 0) - crowded * sizes
        every = torch.arange(full.numel(), device=counts.device) - begin[full] + first[full]
        stays = torch.ones(every.numel(), dtype=torch.bool, device=counts.device)
        stays[torch.searchsorted(every, chosen[out])] = False
        return torch.sort(torch.cat([chosen[~out], every[stays]])).values


def _with(chosen: Tensor, fresh: Tensor) -> Tensor:
    """``chosen`` and what is new of ``fresh``, ascending as both are; ``fresh`` is short, or ``chosen`` empty."""
    if not chosen.numel():
        return fresh
    at = torch.searchsorted(chosen, fresh)
    is_new = chosen[at.clamp(max=chosen.numel() - 1)] != fresh
    fresh, at = fresh[is_new], at[is_new]
    place = at + torch.arange(fresh.numel(), device=at.device)
    old = torch.ones(chosen.numel() + fresh.numel(), dtype=torch.bool, device=at.device)
    old[place] = False
    out = torch.empty(old.shape, dtype=torch.int64, device=at.device)
    out[place] = fresh
    return out.masked_scatter_(old, chosen)


def _sorted_in_groups(values: Tensor, counts: Tensor, group: Tensor) -> Tensor:
    """The different ones of ``values``, ascending.

    Every value of a group is below every value of the next, so each group is sorted by itself, in a row of a table, unless they are uneven.

    Args:
        values: ``(n,)`` int64, group after group.
        counts: ``(groups,)`` how many of each group.
        group: ``(n,)`` the group of each.
    """
    width, n = int(counts.max()), counts.numel()
    if width * n > 4 * values.numel():
        different: Tensor = torch.unique(values)
        return different
    offset = torch.arange(n, device=values.device).mul_(width) - (torch.cumsum(counts, 0) - counts)
    table = torch.full((n * width,), _NONE, device=values.device)
    table[torch.arange(values.numel(), device=values.device).add_(offset[group])] = values
    ordered = torch.sort(table.view(n, width), dim=1).values
    new = ordered < _NONE
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    return ordered[new]
