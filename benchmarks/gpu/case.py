"""A case of ``benchmarks.ops`` on a GPU: ours beside its peers, all recorded in CUDA graphs, and its share of the limit in fp32 and bf16.

Same matrices, inputs, peers, checks against float64 and estimator as ``benchmarks ops``; that suite times calls from Python as people write them,
which on a GPU hides kernels of a few microseconds behind the host. Here the host's time is nobody's. The layout is kept, and the optimizer is
left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.figures import Figure, NotRun, Run
from benchmarks.gpu.device import DEVICE, Calls, require
from benchmarks.gpu.share import of_limit
from benchmarks.ops import cases, table
from benchmarks.ops.cases import CASES, FEATURE_MAJOR, MAIN, ROW_MAJOR, Case, Shape
from benchmarks.ops.measure import refusal
from benchmarks.ops.peers import OURS, Kind, kinds
from benchmarks.ops.problem import N_INPUTS, Problem, make
from benchmarks.ops.sides import Side
from benchmarks.ops.timing import Wrong, right, seconds_of, side_of
from sparsefleet.measure.clock import Clock, clock_for
from sparsefleet.measure.estimate import Plan, compare
from sparsefleet.measure.verdict import judge

OURS_BF16 = "ours, bf16"
BF16 = replace(OURS, precision="bf16")
PEERS = (cases.DENSE, cases.DENSE_TF32, cases.DENSE_BF16, cases.TORCH_SDDMM, cases.SPMM, cases.SPARSE_TENSOR, cases.TORCH_CSR)
_FORWARD = "forward"
_SECONDS = 40.0
"""Of a case; peers that come later are not run, so that all cases together stay within the suite's ten minutes."""
_SLOW_S = 0.02


def figures(run: Run) -> list[Figure]:
    """Ratios, shares of the limit and the targets that are set for a GPU."""
    require()
    case = CASES[run.id]
    try:
        found = measure(case, DEVICE, _SECONDS / len(case.shapes), run)
    except Wrong as why:
        return [Figure(case.title, "", note=str(why), broken=True)]
    run.keep(found)
    return judged(case, found)


def measure(case: Case, device: str, seconds: float, run: Run, clock: Clock | None = None) -> dict[str, Any]:
    """All points of a case as JSON, in the form of ``benchmarks.ops``; after ``seconds`` for a point no further peer is begun."""
    clock = clock or clock_for(device)
    about = {"case": case.id, "title": case.title, "batch": case.batch, "device": torch.device(device).type, "quick": run.quick}
    points = [_point(case, shape, clock, device, seconds, run) for shape in case.shapes]
    return about | points[len(points) // 2] | ({"points": points} if len(points) > 1 else {})


def judged(case: Case, found: dict[str, Any]) -> list[Figure]:
    """Figures of the case, the shares that bf16 reaches among them."""
    made = table.figures(case, found)
    for point in found.get("points", [found]):
        for precision, limits in (("fp32", point["ours"]["limit"]), ("bf16", point["ours"].get("limit_bf16", {}))):
            title = f"{case.title}{', density {:.4g}'.format(point['density']) if 'points' in found else ''}"
            made += [
                Figure(f"{precision}, {name}, of the limit: {title}", "%", row["percent"], note=f"{row['ms']:.4g} ms, {row['bound']}")
                for name, row in limits.items()
            ]
    return made


def _point(case: Case, shape: Shape, clock: Clock, device: str, seconds: float, run: Run) -> dict[str, Any]:
    run.say(f"{case.id}: {shape}, batch {case.batch}, {shape.nnz:,} connections: making it, and its answers in float64")
    problem, end = make(shape, case.batch).on(device), time.monotonic() + seconds
    ours = _Ours(problem, OURS, device)
    point: dict[str, Any] = {"shape": [shape.n_in, shape.n_out], "density": shape.nnz / shape.sites, "nnz": shape.nnz}
    point["ours"] = {"error": ours.error, "limit": _limits(ours, shape, case.batch, clock), "recorded": ours.calls(MAIN, 1).is_recorded}
    _say(run, "ours, fp32", point["ours"]["limit"])
    beside: dict[str, Kind] = {name: kinds()[name] for name in PEERS}
    if device != "cpu":
        half = _Ours(problem, BF16, device)
        point["ours"]["limit_bf16"] = _limits(half, shape, case.batch, clock)
        _say(run, OURS_BF16, point["ours"]["limit_bf16"])
        beside = {OURS_BF16: BF16, **beside}
    point["peers"] = {}
    for name, kind in beside.items():
        try:
            why_not = "" if name == OURS_BF16 else refusal(name, shape, case.batch, torch.device(device).type)
            if why_not or time.monotonic() > end:
                raise NotRun(why_not or f"no time left: {seconds:.0f} s a case")
            row = _beside(problem, kind, ours, f"gpu|{case.id}|{shape}|{name}", clock)
            ratio = "no ratio" if row["ratio_vs_ours"] is None else f"ours is {row['ratio_vs_ours']:.3g} times faster"
            run.say(f"  {name:20} f+b {row['fwd_bwd_ms']:9.4g} ms  {ratio}  {row['verdict']}")
        except (NotRun, Wrong) as why:
            row = {"wrong" if isinstance(why, Wrong) else "not_run": str(why)}
        except (RuntimeError, NotImplementedError) as why:
            row = {"not_run": f"it cannot: {(str(why) or type(why).__name__).splitlines()[0][:160]}"}
        point["peers"][name] = row
        if device != "cpu":
            torch.cuda.empty_cache()
    return point


class _Ours:
    """Our layer with its inputs, and its recorded calls by operation and number."""

    def __init__(self, problem: Problem, kind: Kind, device: str) -> None:
        self.side, self.device, self.width = side_of(problem, kind, FEATURE_MAJOR), device, 2 if kind.precision == "bf16" else 4
        self.error = right("ours", self.side)
        self._calls: dict[tuple[str, int], Calls] = {}

    def calls(self, op: str, n: int) -> Calls:
        call = self._backward if op == "backward" else self.side.call(op)
        if (op, n) not in self._calls:
            self._calls[op, n] = Calls(call, n, self.device)
        return self._calls[op, n]

    def _backward(self, i: int) -> object:
        """The backward pass alone, as autograd calls it."""
        module: Any = self.side.peer.module
        p, values = module.pattern, module.weight_parameter.detach().view(-1)
        index = (p.crow, p.col, p.t_ptr, p.t_row, p.t_pos, p.shape[1], -1 if p.fan_in is None else p.fan_in, p.panels)
        return torch.ops.sparsefleet.linear_backward(self.side.grads[i], self.side.xs[i].detach(), values, *index, True, True)


def _limits(ours: _Ours, shape: Shape, batch: int, clock: Clock) -> dict[str, Any]:
    """Shares of the limit, with the verdict on the timing: our call against itself reads 1 where it can be trusted."""
    found = {}
    for op in (_FORWARD, "backward"):
        calls = ours.calls(op, N_INPUTS)
        found[op] = _judged_pair(calls, calls, Plan(f"gpu|limit|{shape}|{batch}|{ours.width}|{op}", 30, 20, 2.0, 0.5), clock)
    ms = {op: row["ours_ms"] for op, row in found.items()}
    shares = of_limit(shape, batch, ours.width, ms, ours.device, clock.threads)
    return {op: row | {word: found[op][word] for word in ("verdict", "reasons")} for op, row in shares.items()}


def _beside(problem: Problem, kind: Kind, ours: _Ours, key: str, clock: Clock) -> dict[str, Any]:
    """Times, ratios and verdicts of a peer, forward and forward + backward."""
    if ours.device != "cpu":
        torch.set_float32_matmul_precision("highest")  # the TF32 peer sets its own
    side = side_of(problem, kind, FEATURE_MAJOR if FEATURE_MAJOR in kind.layouts else ROW_MAJOR)
    error = right("the peer", side)
    n = N_INPUTS if seconds_of(lambda: side.both(0)) < _SLOW_S else 1
    found = {op: _compared(side, ours, op, n, Plan(f"{key}|{op}", 30, 7, 2.0, 0.5), clock) for op in (_FORWARD, MAIN)}
    main = found[MAIN]
    return {
        "fwd_ms": found[_FORWARD]["ms"],
        "fwd_bwd_ms": main["ms"],
        "ratio_vs_ours": main["ratio"],
        **{name: main[name] for name in ("ci", "verdict", "reasons")},
        "layout": side.inputs.layout,
        "error": error,
        "ops": found,
    }


def _compared(side: Side, ours: _Ours, op: str, n: int, plan: Plan, clock: Clock) -> dict[str, Any]:
    peer = Calls(side.call(op), n, ours.device)
    found = _judged_pair(peer, ours.calls(op, n), plan, clock)
    side.forget()
    return found | {"recorded": peer.is_recorded}


def _judged_pair(peer: Calls, own: Calls, plan: Plan, clock: Clock) -> dict[str, Any]:
    one: Callable[[Calls], Callable[[Any], object]] = lambda calls: lambda _: calls.run()  # noqa: E731
    estimate, _ = compare(one(peer), one(own), inputs=(None,), plan=plan, clock=clock)
    verdict, reasons = judge(estimate, "screen", clock.threads)
    return {
        "ms": 1e3 * estimate.dense_s["median"] / peer.n,
        "ours_ms": 1e3 * estimate.sparse_s["median"] / own.n,
        "ratio": estimate.vs_dense.value,
        "ci": estimate.vs_dense.ci95,
        "verdict": verdict,
        "reasons": reasons,
        "rounds": estimate.rounds,
    }


def _say(run: Run, name: str, limits: dict[str, Any]) -> None:
    shares = ", ".join(f"{op} {row['ms']:.4g} ms = {row['percent']:.0f} % of the limit ({row['bound']})" for op, row in limits.items())
    run.say(f"  {name:20} {shares}")
