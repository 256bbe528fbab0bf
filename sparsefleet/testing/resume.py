"""A training that was interrupted ends with the same bits as one that was not: all of a method's state is where the core saves it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress, Pruner, Rewirer
from sparsefleet.testing.expect import expect
from sparsefleet.testing.reference import NNZ, SHAPE, inputs, module_for
from sparsefleet.testing.samples import layer_of

_Method = TypeVar("_Method", Pruner, Rewirer)
_STEPS, _INTERRUPTED = 20, 10
_PRUNED = {4: 55, 8: 44, 12: 30, 17: 13}
"""How many connections a pruner leaves, by step."""


class _Training:
    """One layer, its optimizer and its topology, between two steps."""

    def __init__(self, method: Pruner | Rewirer, seed: int = 0, saved: dict[str, Any] | None = None) -> None:
        self.method = type(method).model_validate_json(method.model_dump_json())
        conn = layer_of(SHAPE, NNZ, seed=seed)
        if saved:
            flat = saved["sites"]
            conn = replace(conn, row=flat // SHAPE[1], col=flat % SHAPE[1], weight=conn.weight.new_zeros(flat.numel()), grad=None)
        self.module = module_for(self.method, conn)
        self.optimizer = torch.optim.SGD([self.module.weight_parameter], lr=0.05, momentum=0.0 if self._plain else 0.9)
        self.topology = Topology({"layer": self.module}, self.optimizer, seed=seed, asked={"layer": NNZ})
        if not saved:
            self.topology.start(self.method)
            return
        self.topology.prepare(self.method)
        self.module.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.module.method_state = saved["state"]
        self.module.dense_state.update(saved["dense"])
        self.module.method_memory = saved["memory"]

    @property
    def _plain(self) -> bool:
        return isinstance(self.method, Rewirer) and self.method.needs_plain_sgd

    def saved(self) -> dict[str, Any]:
        """What the core's checkpoint holds."""
        return copy.deepcopy(
            {
                "sites": self.module.flat_sites(),
                "net": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "state": self.module.method_state,
                "dense": self.module.dense_state,
                "memory": self.module.method_memory,
            }
        )

    def go(self, first: int, last: int) -> _Training:
        """Steps ``first + 1`` to ``last``."""
        for step in range(first + 1, last + 1):
            self.optimizer.zero_grad()
            self.topology.watch_absent(self.method.needs_dense or getattr(self.method, "needs_absent_grad", False))
            self.module(inputs(step)).square().mean().backward()
            self.optimizer.step()
            self.topology.enforce()
            self.topology.on_step(self.method, 0.05, step)
            if isinstance(self.method, Rewirer):
                self.topology.rewire(self.method, Progress(step, 2 * _STEPS, 5))
            elif step in _PRUNED:
                self.topology.prune(self.topology.score(self.method, step), _PRUNED[step] / (SHAPE[0] * SHAPE[1]))
        return self


def resumes_to_the_bit(plugin: _Method) -> None:
    """Interrupted in the middle, saved, and taken up by a new plugin object, a training ends as if it had never been interrupted."""
    whole = _Training(plugin).go(0, _STEPS).saved()
    half = _Training(plugin).go(0, _INTERRUPTED).saved()
    _Training(plugin, seed=1).go(0, _INTERRUPTED - 3)  # another trial of the same process, which leaves its traces in classes and modules
    resumed = _Training(plugin, saved=half).go(_INTERRUPTED, _STEPS).saved()
    different = [name for name in whole if not _equal(whole[name], resumed[name])]
    expect(
        not different,
        "the same sites, weights, optimizer slots and state as without an interruption",
        f"others: {', '.join(different)}",
        "keep what lives from step to step in conn.state, conn.memory or conn.dense.state, never in the class, a module global or a private "
        "attribute, and nothing under time or id()",
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)
