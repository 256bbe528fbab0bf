"""Checks of a method in a real training loop: the count holds, and optimizer slots follow every topology change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress, Pruner, Rewirer
from sparsefleet.testing.expect import expect
from sparsefleet.testing.reference import NNZ, SHAPE, by_connection, inputs, module_for

Optimizers = dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
_SGD: Optimizers = {"SGD": lambda ps: torch.optim.SGD(ps, lr=0.05)}
_ALL: Optimizers = {
    "SGD with momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.05, amsgrad=True),
}


def keeps_optimizer_slots(plugin: Rewirer) -> None:
    """Slots of kept connections stay with them, those of grown ones start at zero, and the count holds over 20 updates."""
    for name, make in (_SGD if plugin.needs_plain_sgd else _ALL).items():
        module = module_for(plugin)
        optimizer = make([module.weight_parameter])
        topology = Topology({"layer": module}, optimizer, seed=0)
        topology.start(plugin)
        for step in range(1, 21):
            topology.watch_absent(plugin.needs_absent_grad or plugin.needs_dense)
            module(inputs()).square().mean().backward()
            optimizer.step()
            topology.enforce()
            slots = _slots(topology, module)
            topology.on_step(plugin, 0.05, step)
            touched = [key for key, slot in _slots(topology, module).items() if not torch.equal(slot, slots[key])]
            expect(not touched, f"{name} slots that on_step leaves alone", f"changed: {touched}", "write conn.weight and conn.state only")
            _update_and_compare(plugin, topology, module, name, Progress(step, 40, 5))
            optimizer.zero_grad()


def _slots(topology: Topology, module: SparseModule) -> dict[str, torch.Tensor]:
    """``(nnz,)`` copies of the optimizer's slots."""
    assert topology.optimizer is not None
    slots = topology.optimizer.state[module.weight_parameter]
    return {key: by_connection(module, slot).clone() for key, slot in slots.items() if slot is not None and slot.dim()}


def _update_and_compare(plugin: Rewirer, topology: Topology, module: SparseModule, name: str, progress: Progress) -> None:
    before, slots = module.flat_sites(), _slots(topology, module)
    topology.rewire(plugin, progress)
    after = module.flat_sites()
    expect(after.numel() == NNZ or plugin.varies_nnz, f"{NNZ} connections under {name}", after.numel(), "return exact counts")
    at = torch.searchsorted(before, after).clamp(max=before.numel() - 1)
    stayed = before[at] == after
    now = _slots(topology, module)
    for key, old in slots.items():
        same = (now[key][stayed] == old[at[stayed]]) | (now[key][stayed] == 0)  # a site that was dropped and grown at once starts anew
        wrong = int((~same).sum()) + int((now[key][~stayed] != 0).sum())
        expect(
            wrong == 0,
            f"{name} slot {key!r} follows its connection and is zero at grown ones",
            f"{wrong} wrong",
            "return an Update and let the core move weights and slots",
        )


def prunes_to_the_count(plugin: Pruner) -> None:
    """Pruning twice reaches the asked count exactly, and what is gone stays gone unless the pruner revives it."""
    module = module_for(plugin)
    optimizer = torch.optim.SGD([module.weight_parameter], lr=0.1)
    topology = Topology({"layer": module}, optimizer, seed=0)
    topology.start(plugin)
    n_sites = SHAPE[0] * SHAPE[1]
    gone: set[int] = set()
    for step, n_keep in enumerate((40, 13, 1)):
        before = set(module.flat_sites().tolist())
        optimizer.zero_grad()
        topology.watch_absent(plugin.needs_dense)
        if plugin.needs_grad or step or plugin.revives:
            module(inputs()).square().mean().backward()
            optimizer.step()
            topology.enforce()
            topology.on_step(plugin, 0.1, step)
        if not plugin.needs_grad:
            optimizer.zero_grad()
        topology.prune(topology.score(plugin, step), n_keep / n_sites)
        after = set(module.flat_sites().tolist())
        gone |= before - after
        expect(len(after) == n_keep, f"{n_keep} connections", len(after), "return finite scores")
        back = 0 if plugin.revives else len(after & gone)
        expect(back == 0, "pruned connections stay pruned", f"{back} came back", "score stored connections only")
