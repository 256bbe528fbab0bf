"""Looks on between the timed blocks: inputs that are new in every round, flags that nobody may touch, and outputs that must be right.

A layer that returns what it computed for an earlier input, that works only while it is checked, or that changes threads or precision for
itself, is found here, under the clock and not beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.errors import SparsefleetError
from sparsefleet.measure.correctness import FLOOR, Correctness, check_layers, relative_error
from sparsefleet.measure.sides import Batch, Forward, Step, flags
from sparsefleet.rng import Rng

N_AUDITS = 3
_SLACK = 10.0
"""Tolerance of the audit over that of a layer: errors add up on the way through a network."""


class Refused(SparsefleetError):
    """A side did under the clock what no side may do; there is no figure."""


def check_flags(expected: dict[str, Any], who: str) -> None:
    """Refuses a figure if threads or precision are not as they were set.

    Raises:
        Refused: ``who`` changed them.
    """
    now = flags()
    if now != expected:
        raise Refused(
            f"{who} changed {', '.join(f'{name} from {expected[name]} to {now[name]}' for name in now if now[name] != expected[name])}"
        )


class Audit:
    """The watch of one comparison.

    Args:
        inputs: the buffers that all sides are called with.
        pool: batches from whose rows the inputs are drawn anew before every round.
        sparse: the side under suspicion.
        precision: of the trial.
        key: seeds the draws.
        expected: the flags that were set before any side was built.
    """

    def __init__(
        self, inputs: Sequence[Batch], pool: Sequence[Batch], sparse: Forward | Step, precision: str, key: str, expected: dict[str, Any]
    ) -> None:
        self._inputs, self._sparse, self._precision = inputs, sparse, precision
        self._x, self._y = (torch.cat([batch[i] for batch in pool]) for i in (0, 1))
        self._key, self._flags = key, expected
        self._rounds = set(Rng(key, "audit").distinct(N_AUDITS, 20, self._x.device).tolist())
        self._before: dict[str, list[Tensor]] = {}
        self.n_audits = 0
        self.skipped = ""

    def before_round(self, index: int) -> None:
        """New values into the same buffers: rows of the pool in a new mixture, each scaled a little."""
        rng = Rng(self._key, "inputs", index)
        for x, y in self._inputs:
            rows = rng.integers(x.shape[0], self._x.shape[0], x.device)
            torch.index_select(self._x, 0, rows, out=x)
            torch.index_select(self._y, 0, rows, out=y)
            if x.is_floating_point():
                x.mul_(0.9 + 0.2 * rng.uniform(1, x.device).to(x.dtype))

    def after_block(self, side: str, index: int, last_input: int) -> None:
        """Refuses changed flags after every block; audits the sparse side's last result in a few rounds.

        Raises:
            Refused: the flags changed, or a result is not that of its input.
        """
        check_flags(self._flags, f"the {side} side")
        if side == "sparse" and index in self._rounds and not self.skipped:
            self.look(self._inputs[last_input], f"round {index + 1}")

    def look(self, batch: Batch, when: str) -> None:
        """Compares what the sparse side just returned for ``batch`` with what checked layers return for it.

        Raises:
            Refused: it is not that.
        """
        if isinstance(self._sparse, Forward):
            self._output(self._sparse, batch, when)
        else:
            self._gradients(self._sparse, batch, when)

    def _output(self, sparse: Forward, batch: Batch, when: str) -> None:
        got = sparse.last.clone()
        self._layers(sparse.network, batch[0], when)
        sparse(batch)
        self._same([("output", got, sparse.last)], when)

    def _gradients(self, sparse: Step, batch: Batch, when: str) -> None:
        names = [name for name, parameter in sparse.network.named_parameters() if parameter.requires_grad]
        got = self._grads(sparse.network)
        state = [buffer.clone() for buffer in sparse.network.buffers()]
        kept = [parameter.grad for parameter in sparse.network.parameters()]
        try:
            again = [self._again(sparse, batch) for _ in range(2)]
        finally:
            for parameter, grad in zip(sparse.network.parameters(), kept, strict=True):
                parameter.grad = grad
        moved = any(not torch.equal(old, new) for old, new in zip(state, sparse.network.buffers(), strict=True))
        first, second = again
        if moved or max((relative_error(a, b.double()) for a, b in zip(first, second, strict=True)), default=0.0) > FLOOR[self._precision]:
            self.skipped = "the network's gradients change from call to call; its layers are checked alone"
            return
        self._layers(sparse.network, batch[0], when)
        self._same([(f"gradient of {name}", a, b) for name, a, b in zip(names, got, first, strict=True)], when)

    def _again(self, sparse: Step, batch: Batch) -> list[Tensor]:
        sparse.optimizer.zero_grad(set_to_none=True)
        sparse.loss(batch).backward()  # type: ignore[no-untyped-call]
        return self._grads(sparse.network)

    @staticmethod
    def _grads(network: nn.Module) -> list[Tensor]:
        found = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in found]

    def _layers(self, network: nn.Module, x: Tensor, when: str) -> None:
        found = Correctness()
        check_layers(network, x, found, FLOOR[self._precision], self._key)
        if found.margin > 1:
            raise Refused(f"under the clock, in {when}, {found.reason}")

    def _same(self, pairs: Sequence[tuple[str, Tensor, Tensor]], when: str) -> None:
        for what, got, wanted in pairs:
            error = relative_error(got, wanted.to(torch.float64)) if got.shape == wanted.shape else float("inf")
            if error > _SLACK * FLOOR[self._precision]:
                cached = any(got.shape == old.shape and torch.equal(got, old) for old in self._before.get(what, ()))
                told = "is that of an earlier input: cached, not computed" if cached else f"differs from the checked one by {error:.1e}"
                raise Refused(f"under the clock, in {when}, the {what} {told}")
            self._before.setdefault(what, []).append(got)
        self.n_audits += 1


def facts(audit: Audit) -> dict[str, Any]:
    """What the audit did, for the record."""
    return {"audits": float(audit.n_audits)} | ({"audit_skipped": 1.0} if audit.skipped else {})
