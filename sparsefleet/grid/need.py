"""How much memory a trial takes, before anything is built: from the widths of the network and what its plugins declare. Imports no torch.

An estimate covers what a training step holds at its peak: weights, indices, gradients, optimizer slots and activations. Beside it stand the data
set, which lies in memory, and torch itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

from sparsefleet.grid.settings import State

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PER_UNIT = 3
"""Parameters of a unit beside its connections: a bias, and the gain and shift of a norm."""
_PER_LAYER, _AT_ONCE = 2, 4
"""Activations: what a layer keeps for backward (its output, and the activation's), and what one layer's backward holds beside that."""


def size_text(n_bytes: float) -> str:
    """``3.6 TiB``."""
    for unit in _UNITS:
        if n_bytes < 1024 or unit == _UNITS[-1]:
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Chain:
    """A chain of linear layers.

    Attributes:
        widths: from input to output.
        hidden: for each, whether narrowing the model narrows it.
    """

    widths: tuple[int, ...]
    hidden: tuple[bool, ...] = ()

    @property
    def n_weights(self) -> int:
        """Weights if every layer is dense."""
        return sum(a * b for a, b in pairwise(self.widths))

    @property
    def widest(self) -> int:
        """The widest layer."""
        return max(self.widths)

    @property
    def n_units(self) -> int:
        """Units, inputs aside."""
        return sum(self.widths[1:])

    def narrowed(self, n_parameters: float) -> Chain:
        """The chain with its hidden widths times one factor, at which it has about this many parameters."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            smaller = self._times(middle)
            low, high = (middle, high) if smaller.n_weights + _PER_UNIT * smaller.n_units < n_parameters else (low, middle)
        return self._times(high)

    def _times(self, factor: float) -> Chain:
        scaled = zip(self.widths, self.hidden, strict=True)
        return Chain(tuple(max(1, round(width * factor)) if hidden else width for width, hidden in scaled), self.hidden)


@lru_cache(maxsize=64)
def _parsed(item: str) -> tuple[str, str, str, str]:
    """The parts of ``name*factor:parameter=value``."""
    width, _, condition = item.partition(":")
    name, _, factor = width.partition("*")
    parameter, _, value = condition.partition("=")
    return name, factor, parameter, value


def chain_of(items: list[str], known: dict[str, Any], parameters: dict[str, Any]) -> Chain | None:
    """The chain that a model declares (``Model.chain``), or None where a name in it is no width.

    Args:
        known: widths of ``input`` and ``outputs``.
        parameters: the model's.
    """
    widths: list[int] = []
    hidden: list[bool] = []
    for item in items:
        name, factor, parameter, value = _parsed(item)
        if parameter and str(parameters.get(parameter)) != value:
            continue
        one = name.removesuffix("[-1]")
        found = known.get(one, parameters.get(one))
        several = list(found) if isinstance(found, (list, tuple)) else [found]
        times: Any = parameters.get(factor) if factor else 1
        if not several or not all(isinstance(width, int) for width in [*several, times]):
            return None
        chosen: list[Any] = several[-1:] if one != name else several
        widths += [width * times for width in chosen]
        hidden += [one not in known] * len(chosen)
    return Chain(tuple(widths), tuple(hidden)) if len(widths) > 1 else None


@dataclass(frozen=True)
class Need:
    """Bytes of one trial by what they hold."""

    weights: float
    indices: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """Bytes by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        held = ", ".join(f"{name} {size_text(value)}" for name, value in self.parts.items() if value)
        return f"{size_text(self.total)} ({held})"


def optimizer_slots(state: State) -> int:
    """Tensors that the optimizer keeps per weight."""
    ((kind, parameters),) = state["optimizer"].items()
    if kind == "sgd":
        return int(parameters.get("momentum", 0) > 0)
    return 1 + int(parameters.get("momentum", 0) > 0) if kind == "rmsprop" else 2


def dense(state: State, chain: Chain, *, masked: bool = False) -> Need:
    """What training every weight of ``chain`` takes.

    Args:
        masked: with a mask and the masked product of every weight.
    """
    size, n = _value_bytes(state), chain.n_weights
    need = _need(state, chain, n)
    return Need(need.weights, n, need.gradients + size * n, need.optimizer, need.activations) if masked else need


def sparse(state: State, chain: Chain, index_bytes: float) -> Need:
    """What training the connections of ``chain`` at the state's density takes.

    Args:
        index_bytes: of a stored connection.
    """
    kept, n = _live(state, chain)
    need = _need(state, chain, kept + n)
    return Need(need.weights, index_bytes * n, need.gradients, need.optimizer, need.activations)


def small_dense(state: State, chain: Chain) -> Need:
    """What training ``chain`` takes once it is narrowed to the parameters that it has at the state's density."""
    return dense(state, narrowed(state, chain))


def narrowed(state: State, chain: Chain) -> Chain:
    """``chain`` with about as many parameters as it has at the state's density."""
    return chain.narrowed(sum(_live(state, chain)) + _PER_UNIT * chain.n_units)


def _live(state: State, chain: Chain) -> tuple[float, float]:
    """Weights of the layers that stay dense, and connections of the others; a layer that is kept by another name than its place counts as sparse."""
    sizes = [a * b for a, b in pairwise(chain.widths)]
    names = (state.get("method") or {}).get("keep_dense") or ()
    places = {place for name, place in (("first", 0), ("last", len(sizes) - 1)) if name in names}
    kept = sum(sizes[place] for place in places)
    return kept, (chain.n_weights - kept) * state["density"]


def _need(state: State, chain: Chain, n_weights: float) -> Need:
    size, batch = _value_bytes(state), state["train"]["batch_size"]
    n = n_weights + _PER_UNIT * chain.n_units
    activations = size * batch * (_PER_LAYER * chain.n_units + _AT_ONCE * chain.widest)
    return Need(size * n, 0, size * n, size * n * optimizer_slots(state), activations)


def most(chain: Chain, batch_size: int) -> float:
    """Bytes that no estimate for the chain exceeds: in float64, with Adam, masked or with the largest indices."""
    return 48 * (chain.n_weights + _PER_UNIT * chain.n_units) + 8 * batch_size * (_PER_LAYER * chain.n_units + _AT_ONCE * chain.widest)


def _value_bytes(state: State) -> int:
    return 8 if state["train"].get("precision") == "fp64" else 4
