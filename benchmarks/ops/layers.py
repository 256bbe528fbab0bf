"""The csr layer beside its peers: same matrix, same inputs, same rounds, by the product's own estimator. Needs neither ray nor mlflow.

A value above 1 says that csr is faster than the peer. No clock starts before output (and gradients) agree with float64. One thread on a CPU; a GPU
where there is one.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.figures import Figure, NotRun, Run
from benchmarks.ops.peers import PEERS, Peer, Shape, ours
from sparsefleet.connections import Connections
from sparsefleet.measure.clock import Call, clock_for
from sparsefleet.measure.correctness import FLOOR, relative_error
from sparsefleet.measure.estimate import Plan, compare
from sparsefleet.measure.run import memory_free
from sparsefleet.measure.verdict import judge

SHAPES = (Shape(784, 2000, 0.1), Shape(2048, 2048, 0.1), Shape(2048, 2048, 0.01), Shape(8192, 8192, 0.01))
BATCHES = (1, 64)
BUDGET_S = 6.0
LONGEST_CALL_S = 1.5
"""Twenty rounds of three sides take at least a minute beyond that."""
_COPIES = 8
"""Dense matrices that the worst peer holds at a time: its own, a second copy, gradients, and what conversions need."""
_ROWS = 1024


def forward(run: Run) -> list[Figure]:
    """The layer alone, in inference mode."""
    return _figures(run, "forward")


def step(run: Run) -> list[Figure]:
    """Forward and backward, for input and weights."""
    return _figures(run, "forward+backward")


def _figures(run: Run, op: str) -> list[Figure]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    found: list[Figure] = []
    raw: list[dict[str, Any]] = []
    for shape in SHAPES[: run.pick(len(SHAPES), 1)]:
        for batch in BATCHES:
            about = f"{op}, {shape}, batch {batch}"
            free, needed = memory_free(device), _COPIES * 4 * shape.n_in * shape.n_out
            if free is not None and needed > 0.8 * free:
                found.append(
                    Figure(f"csr over its peers: {about}", "times", note=f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
                )
                continue
            run.say(about)
            found += _case(run, Case(shape, batch, op, device), raw)
    run.keep(raw)
    return found


def _case(run: Run, case: Case, raw: list[dict[str, Any]]) -> list[Figure]:
    found, csr_s = [], None
    for name in PEERS:
        what = f"csr over {name}: {case}"
        try:
            one = case.against(name)
        except NotRun as reason:
            found.append(Figure(what, "times", note=str(reason)))
            continue
        raw.append(one)
        if one["speedup"] is None:
            found.append(Figure(what, "times", note=f"every round was disturbed: {'; '.join(one['reasons'])}"))
            continue
        csr_s = csr_s or one["csr_s"]
        why = f" ({'; '.join(one['reasons'])})" if one["reasons"] else ""
        note = f"{one['verdict']}{why}; csr {1e3 * one['csr_s']:.3g} ms, {name} {1e3 * one['peer_s']:.3g} ms; error {one['error']:.0e}"
        found.append(Figure(what, "times", one["speedup"], one["ci95"], note=run.note(note)))
    if csr_s:
        found.append(case.of_limit(csr_s, run))
    return found


class Case:
    """One layer at one batch size, forward or forward and backward."""

    def __init__(self, shape: Shape, batch: int, op: str, device: str) -> None:
        self.about, self.op, self.device = f"{op}, {shape}, batch {batch}", op, device
        self.conn = shape.connections(device)
        draws = torch.Generator().manual_seed(0)
        self.inputs = [torch.randn(batch, shape.n_in, generator=draws).to(device) for _ in range(4)]
        self.grad = torch.randn(batch, shape.n_out, generator=draws).to(device)
        self.clock = clock_for(device, 1 if device == "cpu" else None)
        self._tolerance = FLOOR["fp32"]

    def __str__(self) -> str:
        return self.about

    def against(self, name: str) -> dict[str, Any]:
        """What the estimator says of csr and a peer.

        Raises:
            NotRun: the peer cannot do it, does it wrongly, or takes too long.
        """
        sides: dict[str, Call] = {}
        errors = []
        for side, make in (("csr", ours), ("peer", PEERS[name]), ("second", PEERS[name])):
            try:
                peer = make(self.conn)
                errors.append(self._error(peer))
            except (RuntimeError, NotImplementedError) as error:
                raise NotRun(f"{'csr' if side == 'csr' else name} cannot: {str(error).splitlines()[0][:120]}") from error
            if errors[-1] > self._tolerance:
                raise NotRun(f"{'csr' if side == 'csr' else name} is wrong: relative error {errors[-1]:.1e}")
            sides[side] = self._call(peer)
        took = self._once(sides["peer"])
        if took > LONGEST_CALL_S:
            raise NotRun(f"one call of {name} takes {took:.1f} s")
        plan = Plan(f"ops|{name}|{self}", budget_s=BUDGET_S)
        estimate, _ = compare(sides["peer"], sides["csr"], second=sides["second"], inputs=self.inputs, plan=plan, clock=self.clock)
        verdict, reasons = judge(estimate, "screen", self.clock.threads)
        return {
            "case": str(self),
            "peer": name,
            "speedup": estimate.speedup,
            "ci95": estimate.ci95,
            "verdict": verdict,
            "reasons": reasons,
            "csr_s": estimate.sparse_s["median"],
            "peer_s": estimate.dense_s["median"],
            "aa_ratio": estimate.aa_ratio,
            "kept": estimate.kept,
            "rounds": estimate.rounds,
            "error": max(errors),
        }

    def of_limit(self, csr_s: float, run: Run) -> Figure:
        """The least time that this machine could take, over the time it took."""
        from sparsefleet_plugins.layers.csr import CsrLinear

        from sparsefleet.measure.cost import cost
        from sparsefleet.measure.limits import limit
        from sparsefleet.measure.peaks import peaks

        network = nn.Sequential(CsrLinear(self.conn, None))
        op = "forward" if self.op == "forward" else "step"
        found = limit(cost(network, self.inputs[0], op, "sgd", "fp32"), peaks(self.device, self.clock.threads), op)
        (layer,) = found.layers  # the optimizer is not timed here
        note = run.note(f"{layer.bound}; {1e6 * layer.seconds:.3g} of {1e6 * csr_s:.3g} µs")
        return Figure(f"csr of this machine's limit: {self}", "%", 100 * layer.seconds / csr_s, target=105.0, at_least=False, note=note)

    def _call(self, peer: Peer) -> Call:
        if self.op == "forward":

            def call(x: Tensor) -> object:
                with torch.inference_mode():
                    return peer.forward(x)

            return call
        leaves = {x.data_ptr(): x.detach().requires_grad_() for x in self.inputs}  # of this side alone: the storage is shared

        def step(x: Tensor) -> object:
            leaf = leaves[x.data_ptr()]
            leaf.grad = peer.weight.grad = None
            y = peer.forward(leaf)
            y.backward(self.grad)
            return y

        return step

    def _once(self, call: Call) -> float:
        call(self.inputs[0])
        begun = time.perf_counter()
        call(self.inputs[1])
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def _error(self, peer: Peer) -> float:
        """The worst relative error against float64: of the output, and of both gradients where they are timed."""
        x = self.inputs[0].detach().clone().requires_grad_(self.op != "forward")
        y, by_x, by_values = reference(self.conn, self.inputs[0], self.grad)
        got = peer.forward(x)
        errors = [relative_error(got.detach(), y)]
        if self.op != "forward":
            peer.weight.grad = None
            got.backward(self.grad)
            errors += [relative_error(x.grad, by_x), relative_error(peer.grad_values().detach(), by_values)]
            peer.weight.grad = None
        return max(errors)


def reference(conn: Connections, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient by the input and gradient by the connections in float64, from blocks of dense rows."""
    n_out, n_in = conn.shape
    wide, upper = x.double(), grad.double()
    y, by_x = wide.new_empty(x.shape[0], n_out), wide.new_zeros(x.shape)
    for first in range(0, n_out, _ROWS):
        last = min(first + _ROWS, n_out)
        here = (conn.row >= first) & (conn.row < last)
        block = wide.new_zeros(last - first, n_in)
        block[conn.row[here] - first, conn.col[here]] = conn.weight[here].double()
        y[:, first:last] = wide @ block.t()
        by_x += upper[:, first:last] @ block
    by_values = wide.new_zeros(conn.row.numel())
    for one_x, one_grad in zip(wide, upper, strict=True):
        by_values += one_grad[conn.row] * one_x[conn.col]
    return y, by_x, by_values
