"""Whether a combination can run: what the plugins declare of themselves, and whether the weights fit into memory.

Byte estimates need the data set's shapes and a model that declares its chain of widths; for other models there is no estimate, and a trial that does not
fit ends as OOM. Nothing here knows a plugin by name.
"""

from __future__ import annotations

import os
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from sparsefleet.grid import need
from sparsefleet.grid.need import Chain, Need, chain_of, size_text
from sparsefleet.grid.realised import density_misfit, is_settled
from sparsefleet.grid.settings import State
from sparsefleet.grid.starting import Starts
from sparsefleet.grid.storage import missing_package, storage_misfit, tile_of, width_misfit

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog

_CHAIN = ["input", "hidden", "outputs"]
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


class Facts:
    """Class facts of plugins, from the catalogue, looked up once."""

    def __init__(self, catalog: Catalog, memory_bytes: int | None = None) -> None:
        self.catalog = catalog
        self.memory = machine_memory() if memory_bytes is None else memory_bytes
        self.starts = Starts(catalog)
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
        if not isinstance(info, dict):
            return None
        ((_, parameters),) = state["model"].items()
        items = self.of("model", state["model"]).get("chain", _CHAIN)
        return chain_of(items, {"input": prod(info["input_shape"]), "outputs": info["n_outputs"]}, parameters)


def _estimable(state: State, facts: Facts) -> Chain | None:
    """The widths of a trial whose memory is this machine's; a GPU has its own."""
    return None if state["resources"]["gpus"] > 0 else facts.chain(state)


def dense_need(state: State, facts: Facts, *, masked: bool = False) -> str | None:
    """Why the dense weights of ``state`` cannot be trained in this machine's memory, or None if they can."""
    chain = _estimable(state, facts)
    if chain is None:
        return None
    has = f"this machine has {size_text(facts.memory)}"
    weight = 4 * chain.n_weights
    if weight > facts.memory:
        return f"dense weight needs {size_text(weight)}, {has}"
    training = need.dense(state, chain, masked=masked).total
    return f"training the dense weight needs {size_text(training)}, {has}" if training > facts.memory else None


def sparse_need(state: State, facts: Facts) -> str | None:
    """Why the connections of ``state`` cannot be trained in this machine's memory, or None if they can."""
    chain = _estimable(state, facts)
    if chain is None:
        return None
    takes = _while_training(state, facts, chain).total
    return f"its connections need {size_text(takes)}, this machine has {size_text(facts.memory)}" if takes > facts.memory else None


def _while_training(state: State, facts: Facts, chain: Chain) -> Need:
    """At the start, if it is denser than what was asked; connections that are given are as many as they are."""
    given = is_settled(state, facts.of("connectivity", state.get("connectivity")))
    first = state["density"] if given else facts.starts.density_of(state, chain, facts.of("rewirer", state["method"].get("rewirer")))
    index_bytes = float(facts.of("layer", state["layer"]).get("index_bytes", 16.0))
    return need.sparse({**state, "density": max(state["density"], first)}, chain, index_bytes)


def memory_of(state: State, facts: Facts) -> Need | None:
    """What the resolved state takes while it trains, or None where that cannot be told."""
    chain = _estimable(state, facts)
    if chain is None:
        return None
    if state.get("narrow_to_density") is not None:
        return need.small_dense({**state, "density": state["narrow_to_density"]}, chain)
    if state["density"] >= 1:
        return need.dense(state, chain)
    if facts.of("layer", state["layer"]).get("stores_dense") or state["method"].get(
        "pruner"
    ):  # pruning trains on masked before it converts
        return need.dense(state, chain, masked=True)
    return _while_training(state, facts, chain)


def widest_of(state: State, facts: Facts) -> int | None:
    """Units of the widest layer of what the resolved state trains: of a narrowed net, of those that were narrowed."""
    chain = facts.chain(state)
    if chain is None or state.get("narrow_to_density") is None:
        return chain.widest if chain else None
    smaller = need.narrowed({**state, "density": state["narrow_to_density"]}, chain)
    return max((width for width, hidden in zip(smaller.widths, smaller.hidden, strict=True) if hidden), default=smaller.widest)


def unfit(state: State, facts: Facts) -> str | None:
    """Why the resolved sparse state cannot run, or None if it can."""
    layer = next(iter(state["layer"]))
    of_layer = facts.of("layer", state["layer"])
    family, method = ("pruner", state["method"].get("pruner")) if state["method"].get("pruner") else ("rewirer", state["method"]["rewirer"])
    name, of_method = next(iter(method)), facts.of(family, method)
    if of_layer.get("topology") == "all" and not of_layer.get("narrows"):
        return f"layer={layer} stores every weight; {name} needs masked or a sparse layer"
    if of_method.get("needs_plain_sgd") and not _plain_sgd(state):
        return f"{name} is defined for SGD without momentum; the optimizer is {_optimizer_text(state)}"
    gpus = state["resources"]["gpus"] > 0
    devices = of_layer.get("devices")
    if devices and ("cuda" if gpus else "cpu") not in devices:
        return f"layer={layer} runs on {', '.join(devices)}; this trial asks for {'a GPU' if gpus else 'no GPU'}"
    chain = facts.chain(state)
    reason = (
        storage_misfit(state, of_layer, of_method, facts.of("connectivity", state.get("connectivity")))
        or facts.starts.misfit(state, of_method if family == "rewirer" else {})
        or _kind_misfit(state, facts, layer, of_layer)
        or (width_misfit(state, of_layer, chain.widths) if chain else None)
        or (_density_misfit(state, facts, of_layer, chain) if chain else None)
    )
    if reason:
        return reason
    if family == "rewirer" and of_method.get("needs_dense") and not of_layer.get("stores_dense"):  # a pruner trains on masked
        takes = f" ({size_text(4 * chain.n_weights)} if it were dense)" if chain else ""
        return f"{name} needs values at absent sites, which layer={layer} does not store{takes}; use masked"
    if reason := missing_package(layer, of_layer):  # after what holds on every machine
        return reason
    if of_layer.get("stores_dense") or family == "pruner":  # pruning trains on masked before it converts
        why = dense_need(state, facts, masked=True)
        stored = layer if of_layer.get("stores_dense") else f"masked (until {name} hands over to {layer})"
        return f"layer={stored} at width {chain.widest:,}: {why}" if why and chain else None
    why = sparse_need(state, facts)
    return f"layer={layer} at width {chain.widest:,}, density {state['density']:g}: {why}" if why and chain else None


def _density_misfit(state: State, facts: Facts, of_layer: State, chain: Chain) -> str | None:
    if is_settled(state, facts.of("connectivity", state.get("connectivity"))):
        return None
    return density_misfit(state, chain, of_layer.get("topology", "free"), tile_of(state))


def _kind_misfit(state: State, facts: Facts, layer: str, of_layer: State) -> str | None:
    stored, kept = of_layer.get("kinds", []), state["method"].get("keep_dense") or ()
    ((model, parameters),) = state["model"].items()
    kinds = [item.partition(":") for item in facts.of("model", state["model"]).get("kinds", [])]
    missing = [kind for kind, _, where in kinds if kind not in (*stored, *kept) and _holds(where, parameters)]
    if not missing:
        return None
    has = ", ".join(missing)
    return f"layer={layer} stores {', '.join(stored)}; {model} has {has} as well (keep_dense: [{has}] leaves that dense)"


def _holds(where: str, parameters: dict[str, Any]) -> bool:
    """Whether ``name=value`` is what the parameters say; nothing always is."""
    name, _, value = where.partition("=")
    return not where or str(parameters.get(name)).lower() == value


def _plain_sgd(state: State) -> bool:
    ((kind, parameters),) = state["optimizer"].items()
    return bool(kind == "sgd" and parameters.get("momentum", 0) == 0)


def _optimizer_text(state: State) -> str:
    ((kind, parameters),) = state["optimizer"].items()
    momentum = parameters.get("momentum", 0)
    return f"{kind} with momentum {momentum:g}" if momentum else kind
