"""Checks of a method in a real training loop: the count holds, and optimizer slots follow every topology change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.module import Remap, SparseModule
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress, Pruner, Rewirer
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect
from sparsefleet.testing.samples import layer_of

_SHAPE, _NNZ = (12, 20), 60


class _Reference(SparseModule):
    """The simplest SparseModule there is: values, and a dense matrix made of them at every call."""

    def __init__(self, conn: Connections) -> None:
        super().__init__()
        self._shape, self._flat = conn.shape, conn.flat
        self.values_ = nn.Parameter(conn.weight.clone())
        self._grad: Tensor | None = None
        self.layer_name = conn.layer

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.zeros(self._shape[0] * self._shape[1], dtype=x.dtype).index_put((self._flat,), self.values_)
        if dense.requires_grad:
            dense.register_hook(self._keep)  # type: ignore[no-untyped-call]
        return x @ dense.view(self._shape).T

    def _keep(self, grad: Tensor) -> None:
        self._grad = grad.detach().view(self._shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def weight_parameter(self) -> nn.Parameter:
        return self.values_

    def flat_sites(self) -> Tensor:
        return self._flat

    def values(self) -> Tensor:
        return self.values_.detach()

    def grad_values(self) -> Tensor | None:
        return self.values_.grad

    def write_values(self, values: Tensor) -> None:
        self.values_.detach().copy_(values)

    def set_topology(self, remap: Remap, values: Tensor) -> None:
        self._flat = remap.flat
        self.values_.data = values.clone()

    def remap_slot(self, slot: Tensor, remap: Remap) -> Tensor:
        return remap.gather(slot)

    def watch_absent(self, on: bool) -> None:
        self._grad = None

    def best_absent(self, present: Tensor, k: int) -> Tensor:
        n_in = self._shape[1]
        return Connections("layer", self._shape, present // n_in, present % n_in, present.new_empty(0)).best_absent(k, self._grad)

    def best_absent_per_row(self, present: Tensor, counts: Tensor) -> Tensor:
        n_in = self._shape[1]
        conn = Connections("layer", self._shape, present // n_in, present % n_in, present.new_empty(0))
        return conn.best_absent_per_row(counts, self._grad)


Optimizers = dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
_SGD: Optimizers = {"SGD": lambda ps: torch.optim.SGD(ps, lr=0.05)}
_ALL: Optimizers = {
    "SGD with momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.05, amsgrad=True),
}


def keeps_optimizer_slots(plugin: Rewirer) -> None:
    """Slots of kept connections stay with them, those of grown ones start at zero, and the count holds over 20 updates."""
    if plugin.needs_dense:
        return
    for name, make in (_SGD if plugin.needs_plain_sgd else _ALL).items():
        module = _Reference(layer_of(_SHAPE, _NNZ))
        optimizer = make([module.values_])
        topology = Topology({"layer": module}, optimizer, seed=0)
        topology.start(plugin)
        x = Rng("training").normal(8 * _SHAPE[1]).view(8, -1)
        for step in range(1, 21):
            topology.watch_absent(plugin.needs_absent_grad)
            module(x).square().mean().backward()
            optimizer.step()
            topology.on_step(plugin, 0.05, step)
            _update_and_compare(plugin, topology, module, name, Progress(step, 40, 5))
            optimizer.zero_grad()


def _update_and_compare(plugin: Rewirer, topology: Topology, module: _Reference, name: str, progress: Progress) -> None:
    assert topology.optimizer is not None
    before = module.flat_sites()
    slots = {key: slot.clone() for key, slot in topology.optimizer.state[module.values_].items() if slot is not None and slot.dim()}
    topology.rewire(plugin, progress)
    after = module.flat_sites()
    expect(after.numel() == _NNZ or plugin.varies_nnz, f"{_NNZ} connections under {name}", after.numel(), "return exact counts")
    at = torch.searchsorted(before, after).clamp(max=before.numel() - 1)
    stayed = before[at] == after
    for key, old in slots.items():
        now = topology.optimizer.state[module.values_][key]
        same = (now[stayed] == old[at[stayed]]) | (now[stayed] == 0)  # a site that was dropped and grown at once starts anew
        wrong = int((~same).sum()) + int((now[~stayed] != 0).sum())
        expect(wrong == 0, f"{name} slot {key!r} follows its connection and is zero at grown ones", f"{wrong} wrong", "")


def prunes_to_the_count(plugin: Pruner) -> None:
    """Pruning twice reaches the asked count exactly, and what is gone stays gone."""
    module = _Reference(layer_of(_SHAPE, _NNZ))
    topology = Topology({"layer": module}, torch.optim.SGD([module.values_], lr=0.1), seed=0)
    n_sites = _SHAPE[0] * _SHAPE[1]
    x = Rng("training").normal(8 * _SHAPE[1]).view(8, -1)
    gone: set[int] = set()
    for step, n_keep in enumerate((40, 13, 1)):
        before = set(module.flat_sites().tolist())
        if plugin.needs_grad:
            module.values_.grad = None
            module(x).square().mean().backward()
        topology.prune(topology.score(plugin, step), n_keep / n_sites)
        after = set(module.flat_sites().tolist())
        gone |= before - after
        expect(len(after) == n_keep, f"{n_keep} connections", len(after), "return finite scores")
        expect(not after & gone, "pruned connections stay pruned", f"{len(after & gone)} came back", "score stored connections only")
