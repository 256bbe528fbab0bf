from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from benchmarks.figures import NotRun
from benchmarks.ops import cases
from benchmarks.ops.cases import FEATURE_MAJOR, ROW_MAJOR, Shape
from benchmarks.ops.peers import OURS, Kind, kinds
from benchmarks.ops.problem import Problem, make
from benchmarks.ops.sides import Inputs, Side
from benchmarks.ops.timing import QUICK, Wrong, against, right, side_of
from sparsefleet.measure.clock import CpuClock, Reading, clock_for

EXTRA = pytest.mark.torch_sparse
SLOW = pytest.mark.slow
NEEDS = {
    cases.SPMM: ("torch_sparse", [EXTRA]),
    cases.SPARSE_TENSOR: ("torch_sparse", [EXTRA]),
    cases.SPARSE_TENSOR_NEW: ("torch_sparse", [EXTRA]),
    cases.SPARSEPROP: ("sparseprop", [pytest.mark.sparseprop]),
    cases.SPARSEPROP_MODULE: ("sparseprop", [pytest.mark.sparseprop]),
    cases.DENSE_COMPILED: ("torch", [SLOW]),
}
ON_CPU = [name for name in cases.NAMES if name not in (cases.DENSE_TF32, cases.DENSE_BF16)]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make(Shape(48, 36, 0.25), 16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["ours", *(pytest.param(name, marks=NEEDS[name][1]) if name in NEEDS else name for name in ON_CPU)])
def test_every_peer_agrees_with_float64_in_every_layout_it_takes(name: str, problem: Problem) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name][0])
    kind = OURS if name == "ours" else kinds()[name]
    for layout in kind.layouts:
        side = side_of(problem, kind, layout)
        assert right(name, side) <= 1
        first, again = side.backward(1), side.backward(1)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a.to_dense(), b.to_dense())
        before = side.peer.weight.detach().to_dense().clone()
        side.step(0)
        assert not torch.equal(side.peer.weight.detach().to_dense(), before)


def test_bf16_is_judged_by_its_own_tolerance(problem: Problem) -> None:
    assert right("bf16", side_of(problem, kinds()[cases.DENSE_BF16], ROW_MAJOR)) <= 1


@pytest.mark.parametrize("layout", [ROW_MAJOR, FEATURE_MAJOR])
def test_a_side_gets_its_layout_and_hands_it_on(layout: str, problem: Problem) -> None:
    """dense returns row-major whatever it gets: the other layout is made at its expense."""
    side = side_of(problem, kinds()[cases.DENSE], layout)
    strides = {ROW_MAJOR: lambda t: (t.shape[1], 1), FEATURE_MAJOR: lambda t: (1, t.shape[0])}[layout]
    dx, _ = side.both(0)
    for tensor in (*side.xs, *side.grads, side.forward(0), dx):
        assert tensor.stride() == strides(tensor)


@pytest.mark.parametrize("what", ["y", "dx", "dw"])
def test_a_wrong_answer_stops_before_the_clock(what: str, problem: Problem) -> None:
    off = getattr(problem, what).clone()
    off[..., 3] += 1e-3 * float(off.abs().max())
    with pytest.raises(Wrong, match="ours is wrong"):
        against(replace(problem, **{what: off}), kinds()[cases.DENSE], clock_for("cpu"), "key", QUICK, lambda text: None)


def test_a_peer_that_is_wrong_is_named(problem: Problem) -> None:
    good = kinds()[cases.DENSE]

    def make_wrong(conn: object) -> object:
        peer = good.make(conn)  # type: ignore[arg-type]
        return replace(peer, forward=lambda x: peer.forward(x) * 1.001)

    side = Side(make_wrong(problem.conn), Inputs(problem, good, ROW_MAJOR))  # type: ignore[arg-type]
    with pytest.raises(Wrong, match="the peer is wrong"):
        right("the peer", side)


def test_a_gradient_that_is_dense_in_disguise_is_not_taken(problem: Problem) -> None:
    from benchmarks.ops.peers import _at

    full = torch.ones(problem.conn.shape).to_sparse_csr()
    with pytest.raises(NotRun, match="1,728 values for 432 connections"):
        _at(full, problem.conn)


def test_times_and_ratios_of_a_pair(problem: Problem) -> None:
    said: list[str] = []
    found = against(problem, kinds()[cases.DENSE], clock_for("cpu"), "key", QUICK, said.append)
    assert set(found["ops"]) == {"forward", "backward", "forward+backward", "step"}
    assert len(said) == 4
    for row in found["ops"].values():
        assert row["ms"] > 0
        assert row["ours_ms"] > 0
        assert row["ours_row_major_ms"] > 0
        assert row["rounds"] == QUICK.rounds
        assert row["verdict"] == "NOT_TRUSTWORTHY"  # too few rounds to earn anything
    assert isinstance(kinds()[cases.DENSE], Kind)


class _Disturbed(CpuClock):
    """A clock whose thread gets half of the time, so that no round is kept."""

    block_s = 1e-4

    def time(self, call: Callable[[int], object], inputs: Sequence[int], first: int, calls: int) -> Reading:
        for i in range(calls):
            call(inputs[(first + i) % len(inputs)])
        return Reading(1e-3 * calls, 0.5e-3 * calls)


def test_where_every_round_was_disturbed_there_is_a_ratio_and_no_trust(problem: Problem) -> None:
    row = against(problem, kinds()[cases.DENSE], _Disturbed(1), "key", QUICK, lambda text: None)["ops"]["forward+backward"]
    assert (row["kept"], row["ratio"], row["ci"], row["verdict"]) == (0, pytest.approx(1.0), None, "NOT_TRUSTWORTHY")
    assert (row["row_major_ratio"], row["row_major_ci"], row["row_major_verdict"]) == (pytest.approx(1.0), None, "NOT_TRUSTWORTHY")
    assert "0 of 3 rounds kept" in row["reasons"][0]
