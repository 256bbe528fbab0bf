"""Whether a combination can run: what the plugins declare of themselves, and whether the weights fit into memory.

Byte estimates need the data set's shapes and a model whose parameter ``hidden`` lists the widths of a chain; for other models there is no estimate, and a
trial that does not fit ends as OOM. Nothing here knows a plugin by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from sparsefleet.grid.settings import State

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

MOST_BYTES_PER_WEIGHT = 24
"""No estimate of this module charges more per weight, batch aside."""
_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@lru_cache(maxsize=1)
def machine_memory() -> int:
    """Bytes this process may hope for: the machine's memory, or its container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP:
        try:
            with open(path) as stream:
                text = stream.read().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def size_text(n_bytes: float) -> str:
    """``3.6 TiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if n_bytes < 1024 or unit == "PiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Chain:
    """A chain of linear layers: its widths from input to output."""

    widths: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """Weights if every layer is dense."""
        return sum(a * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def widest(self) -> int:
        """The widest layer."""
        return max(self.widths)


class Facts:
    """Class facts of plugins, from the catalogue, looked up once."""

    def __init__(self, catalog: Catalog, memory_bytes: int | None = None) -> None:
        self.catalog = catalog
        self.memory = machine_memory() if memory_bytes is None else memory_bytes
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        self._defaults: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, family: str, named: State | None) -> dict[str, Any]:
        """The facts of the plugin that ``named`` (name → parameters) names."""
        name = next(iter(named or {}), "")
        if (family, name) not in self._known:
            self._known[family, name] = self.catalog.get(family, name).facts if name else {}
        return self._known[family, name]

    def plain(self, family: str, name: str) -> State:
        """A plugin with all its defaults, as a state holds it."""
        if (family, name) not in self._defaults:
            self._defaults[family, name] = self.catalog.complete(family, name, {})[0]
        return {name: self._defaults[family, name]}

    def chain(self, state: State) -> Chain | None:
        """The widths of the network of ``state``, or None where they cannot be known without building it."""
        info = self.of("dataset", state.get("dataset")).get("info")
        ((_, parameters),) = state["model"].items()
        hidden = parameters.get("hidden")
        if not isinstance(info, dict) or not isinstance(hidden, (list, tuple)) or not all(isinstance(width, int) for width in hidden):
            return None
        return Chain((prod(info["input_shape"]), *hidden, info["n_outputs"]))


def optimizer_slots(state: State) -> int:
    """Tensors that the optimizer keeps per weight."""
    ((kind, parameters),) = state["optimizer"].items()
    if kind == "sgd":
        return int(parameters.get("momentum", 0) > 0)
    return 1 + int(parameters.get("momentum", 0) > 0) if kind == "rmsprop" else 2


def dense_need(state: State, facts: Facts, *, masked: bool = False) -> str | None:
    """Why the dense weights of ``state`` cannot be trained in this machine's memory, or None if they can."""
    chain = facts.chain(state)
    if chain is None or state["resources"]["gpus"] > 0:  # the device's memory is not this machine's
        return None
    has = f"this machine has {size_text(facts.memory)}"
    weight = 4 * chain.n_weights
    if weight > facts.memory:
        return f"dense weight needs {size_text(weight)}, {has}"
    training = chain.n_weights * (4 * (2 + optimizer_slots(state)) + (5 if masked else 0))  # mask and masked product
    return f"training the dense weight needs {size_text(training)}, {has}" if training > facts.memory else None


def sparse_need(state: State, facts: Facts) -> str | None:
    """Why the connections of ``state`` cannot be trained in this machine's memory, or None if they can."""
    chain = facts.chain(state)
    if chain is None or state["resources"]["gpus"] > 0:
        return None
    per_connection = 4 * (2 + optimizer_slots(state)) + 8  # an index forwards and one backwards
    need = chain.n_weights * state["density"] * per_connection + 8 * chain.widest * state["train"]["batch_size"]
    return f"its connections need {size_text(need)}, this machine has {size_text(facts.memory)}" if need > facts.memory else None


def unfit(state: State, facts: Facts) -> str | None:
    """Why the resolved sparse state cannot run, or None if it can."""
    layer = next(iter(state["layer"]))
    of_layer = facts.of("layer", state["layer"])
    family, method = ("pruner", state["method"].get("pruner")) if state["method"].get("pruner") else ("rewirer", state["method"]["rewirer"])
    name, of_method = next(iter(method)), facts.of(family, method)
    if of_layer.get("topology") == "all":
        return f"layer={layer} stores every weight; {name} needs masked or a sparse layer"
    if of_method.get("needs_plain_sgd") and not _plain_sgd(state):
        return f"{name} is defined for SGD without momentum; the optimizer is {_optimizer_text(state)}"
    gpus = state["resources"]["gpus"] > 0
    devices = of_layer.get("devices")
    if devices and ("cuda" if gpus else "cpu") not in devices:
        return f"layer={layer} runs on {', '.join(devices)}; this trial asks for {'a GPU' if gpus else 'no GPU'}"
    reason = _pattern_misfit(state, layer, of_layer.get("topology", "free")) or _kind_misfit(state, facts, layer, of_layer)
    if reason:
        return reason
    chain = facts.chain(state)
    if of_method.get("needs_dense") and not of_layer.get("stores_dense"):
        takes = f" ({size_text(4 * chain.n_weights)} if it were dense)" if chain else ""
        return f"{name} needs values at absent sites, which layer={layer} does not store{takes}; use masked"
    if of_layer.get("stores_dense") or family == "pruner":  # pruning trains on masked before it converts
        need = dense_need(state, facts, masked=True)
        stored = layer if of_layer.get("stores_dense") else f"masked (until {name} hands over to {layer})"
        return f"layer={stored} at width {chain.widest:,}: {need}" if need and chain else None
    need = sparse_need(state, facts)
    return f"layer={layer} at width {chain.widest:,}, density {state['density']:g}: {need}" if need and chain else None


def _pattern_misfit(state: State, layer: str, topology: str) -> str | None:
    pattern = next(iter(state["method"].get("pattern") or {"unstructured": {}}))
    fits = {
        "free": True,
        "constant-fan-in": pattern in ("unstructured", "n:m"),
        "block": pattern == "block",
        "n:m": pattern == "n:m",
    }
    return None if fits.get(topology, True) else f"layer={layer} holds topology {topology}, which pattern {pattern} does not give"


def _kind_misfit(state: State, facts: Facts, layer: str, of_layer: State) -> str | None:
    kinds = facts.of("model", state["model"]).get("kinds")
    missing = [kind for kind in kinds or [] if kind not in of_layer.get("kinds", [])]
    return f"layer={layer} replaces {', '.join(of_layer.get('kinds', []))}; the model has {', '.join(missing)} as well" if missing else None


def _plain_sgd(state: State) -> bool:
    ((kind, parameters),) = state["optimizer"].items()
    return bool(kind == "sgd" and parameters.get("momentum", 0) == 0)


def _optimizer_text(state: State) -> str:
    ((kind, parameters),) = state["optimizer"].items()
    momentum = parameters.get("momentum", 0)
    return f"{kind} with momentum {momentum:g}" if momentum else kind
