"""A layer that stands for others (``auto``): which one, measured under a lease before the trial has a key, so that the key holds its name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsefleet.grid.fit import Facts, unfit
from sparsefleet.grid.settings import State
from sparsefleet.measure.lease import device_lease
from sparsefleet.sparsity.distribute import distribute

if TYPE_CHECKING:
    from sparsefleet.nn.race import Choice

_WAIT_S = 600.0


def chosen_layer(state: State, facts: Facts) -> State | str:
    """The layer with its parameters that is fastest for the whole network of ``state``, or why none can be chosen.

    Every layer of the network is timed alone at the trial's batch size and thread count; the storage with the least sum is taken for all.
    """
    asked = next(iter(state["layer"]))
    fitting, reasons = [], []
    for name in facts.of("layer", state["layer"])["chooses"]:
        reason = unfit({**state, "layer": facts.plain("layer", name)}, facts)
        fitting += [] if reason else [name]
        reasons += [reason] if reason else []
    if len(fitting) < 2:
        return facts.plain("layer", fitting[0]) if fitting else f"layer={asked}: {'; '.join(reasons)}"
    chain = facts.chain(state)
    if chain is None:
        return f"layer={asked} measures layers whose widths are known before the model is built; name one of {', '.join(fitting)}"
    device = "cuda" if state["resources"]["gpus"] > 0 else "cpu"
    if device == "cuda" and not _has_cuda():
        return f"layer={asked} measures where the grid is planned, and no GPU is here; name one of {', '.join(fitting)}"
    shapes = {f"{i}": (chain.widths[i + 1], chain.widths[i]) for i in range(len(chain.widths) - 1)}
    kind = state["method"].get("distribution", "uniform")
    asked_nnz = distribute(shapes, state["density"], "uniform" if kind == "global" else kind)
    problem = _Problem(tuple(fitting), state["train"].get("batch_size", 64), device, int(state["resources"]["cpus"]))
    return facts.plain("layer", _fastest(tuple((shapes[name], asked_nnz[name]) for name in shapes), problem, facts.catalog))


class _Problem(NamedTuple):
    """What is raced, beside the shapes."""

    names: tuple[str, ...]
    batch_size: int
    device: str
    threads: int


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@functools.lru_cache(maxsize=1024)
def _fastest(layers: tuple[tuple[tuple[int, int], int], ...], problem: _Problem, catalog: Any) -> str:
    from sparsefleet.nn.race import preferred

    total = dict.fromkeys(problem.names, 0.0)
    for shape, nnz in layers:
        choice = _raced(shape, nnz, problem, catalog)
        total = {name: seconds + choice.seconds[name] for name, seconds in total.items() if name in choice.seconds} or {choice.name: 0.0}
    return preferred(total)


def _raced(shape: tuple[int, int], nnz: int, problem: _Problem, catalog: Any) -> Choice:
    """The race for one layer, with a constant fan-in, which every storage can hold."""
    import torch
    from torch import nn

    from sparsefleet.connections import Connections
    from sparsefleet.nn.projection import fitted_nnz
    from sparsefleet.nn.race import Setting, choose, dense_is_too_large
    from sparsefleet.registry import Registry
    from sparsefleet.rng import Rng

    names, batch_size, device, threads = problem
    none = torch.empty(0, dtype=torch.int64, device=device)
    empty = Connections("race", shape, none, none, none.float(), constant_fan_in=True)
    row, col = empty.random_absent(fitted_nnz(nnz, shape, "constant-fan-in"), Rng("race"))
    conn = Connections("race", shape, row, col, torch.ones(row.numel(), device=device), constant_fan_in=True)
    registry = Registry(catalog)
    plugins = {name: registry.plugin_class("layer", name)() for name in names}
    large = dense_is_too_large(shape)
    left_out = {name: large for name, plugin in plugins.items() if large and plugin.stores_dense}  # type: ignore[attr-defined]

    def made(name: str) -> nn.Module:
        with torch.device("meta"):
            template = nn.Linear(shape[1], shape[0], bias=False)
        return plugins[name].build(template, conn, None)  # type: ignore[attr-defined,no-any-return]

    setting = Setting(shape, float(f"{conn.density:.3g}"), batch_size, "float32", device, threads, constant_fan_in=True)
    with _threads(threads):
        candidates = {name: functools.partial(made, name) for name in names if name not in left_out}
        return choose(setting, candidates, left_out, lambda: device_lease(device, _WAIT_S))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
