"""One side of a comparison: what is called under the clock, and the check before it.

*Feature-major* is logical (batch, features) with strides (1, batch). A side gets its inputs and output gradients in its layout, and has to
hand output and input gradient on in the same layout: what it returns otherwise is transposed at its expense.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops.cases import FEATURE_MAJOR
from benchmarks.ops.peers import Kind, Peer
from benchmarks.ops.problem import Problem
from sparsefleet.measure.correctness import FLOOR, relative_error


class Inputs:
    """Inputs and output gradients of a problem in a peer's layout and precision; sides may share them."""

    def __init__(self, problem: Problem, kind: Kind, layout: str) -> None:
        self.problem, self.layout, self.precision = problem, layout, kind.precision
        dtype = torch.bfloat16 if kind.precision == "bf16" else torch.float32
        self.xs = [self.lay(x.to(dtype, copy=True)).requires_grad_() for x in problem.inputs]
        self.grads = [self.lay(grad.to(dtype, copy=True)) for grad in problem.grads]

    def lay(self, x: Tensor) -> Tensor:
        """``x`` in this layout; itself if it is."""
        return x.t().contiguous().t() if self.layout == FEATURE_MAJOR else x.contiguous()


class Side:
    """A peer with its inputs."""

    def __init__(self, peer: Peer, inputs: Inputs) -> None:
        self.peer, self.inputs = peer, inputs
        self.xs, self.grads, self.lay = inputs.xs, inputs.grads, inputs.lay
        self._graph: Tensor | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def call(self, op: str) -> Callable[[int], object]:
        """What is timed, by the position of the input."""
        calls = {"forward": self.forward, "backward": self.backward, "forward+backward": self.both, "step": self.step}
        return calls[op]

    def forward(self, i: int) -> Tensor:
        """Inference."""
        with torch.inference_mode():
            return self.lay(self.peer.forward(self.xs[i]))

    def backward(self, i: int) -> tuple[Tensor, Tensor]:
        """Gradients by the first input and the weights, for one of several output gradients, over one and the same graph."""
        if self._graph is None:
            self._graph = self.lay(self.peer.forward(self.xs[0]))
        return self._gradients(self._graph, 0, i, keep=True)

    def both(self, i: int) -> tuple[Tensor, Tensor]:
        """Forward and backward, with both gradients."""
        return self._gradients(self.lay(self.peer.forward(self.xs[i])), i, i)

    def step(self, i: int) -> None:
        """Forward, backward and SGD with momentum."""
        if self._optimizer is None:
            self._optimizer = torch.optim.SGD([self.peer.weight], lr=1e-6, momentum=0.9)
        self.peer.weight.grad = None  # as zero_grad does: two gradients at a time would count as the peer's memory
        _, self.peer.weight.grad = self.both(i)
        self._optimizer.step()

    def _gradients(self, y: Tensor, x: int, grad: int, *, keep: bool = False) -> tuple[Tensor, Tensor]:
        dx, dw = torch.autograd.grad(y, (self.xs[x], self.peer.weight), self.grads[grad], retain_graph=keep)
        return self.lay(dx), dw

    def forget(self) -> None:
        """Frees what backward and step keep between calls."""
        self._graph = self._optimizer = self.peer.weight.grad = None

    def error(self) -> float:
        """The worst relative error of output and both gradients against float64, over what this precision is allowed: above 1 is wrong."""
        problem, y = self.inputs.problem, self.forward(0)
        dx, dw = self.both(0)
        pairs = ((y, problem.y), (dx, problem.dx), (self.peer.values_of(dw), problem.dw))
        errors = [relative_error(got.detach().cpu().double(), wanted) for got, wanted in pairs]
        return max(errors) / FLOOR[self.inputs.precision]
