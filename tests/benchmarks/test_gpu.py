from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.figures import NotRun, Run
from benchmarks.gpu import case as gpu_case, checks, device, rates, share, tiles
from benchmarks.ops import cases
from benchmarks.ops.cases import MAIN, Case, Shape, Target
from benchmarks.ops.timing import Wrong
from sparsefleet.measure.clock import Call, Reading
from sparsefleet.measure.rates import Level, Peaks
from sparsefleet.ops import sparse_linear
from sparsefleet.ops.triton_linear import Tile, triton_backward, triton_forward

RATES = Peaks(
    "fp:test",
    "cuda",
    1,
    (
        Level("l2", 50 * 2**20, 50 * 2**20, 8e12, 8e12, {4: 1e12, 64: 4e12, 256: 6e12, 1024: 6e12}),
        Level("dram", None, None, 4e12, 4e12, {4: 1e11, 64: 2e12, 256: 3e12, 1024: 4e12}),
    ),
    {"fp32": 6e13, "tf32": 4e14, "bf16": 8e14},
    1e-6,
)


class CountingClock:
    """Tells as many milliseconds as ``count`` rose by, or one a call: no test depends on how busy this machine is."""

    kind, block_s, n_cpus, threads, mhz_rated = "cuda", 1e-3, 1, 1, None

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self.count = count

    def time(self, call: Call, inputs: Sequence[Any], first: int, calls: int) -> Reading:
        before = self.count() if self.count else 0
        for i in range(calls):
            call(inputs[(first + i) % len(inputs)])
        return Reading(1e-3 * (self.count() - before if self.count else calls))

    def machine(self) -> None:
        return None


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@NO_GPU
def test_without_a_gpu_the_command_says_so_in_one_sentence_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "gpu was not run: no CUDA device is here (torch finds none)\n"


@NO_GPU
@pytest.mark.parametrize("figures", [checks.figures, rates.figures, gpu_case.figures, tiles.figures])
def test_without_a_gpu_no_part_runs(figures) -> None:
    with pytest.raises(NotRun, match="no CUDA device"):
        figures(Run("b64"))


def test_a_case_runs_with_its_peers_and_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "peaks", lambda device, threads, refresh=False: RATES)
    monkeypatch.setattr(gpu_case, "PEERS", (cases.DENSE, cases.DENSE_TF32, cases.TORCH_SDDMM))
    targets = (
        Target("ratio", cases.DENSE, 0.0, "cpu"),
        Target("limit_forward", "", 99.0, "cpu"),
        Target("ratio", cases.DENSE, 9.0, "cuda"),
    )
    case = Case("tiny", (Shape(40, 30, 0.1),), 8, targets)
    found = gpu_case.measure(case, "cpu", 60.0, Run(), CountingClock())
    json.dumps(found, allow_nan=False)
    assert set(found["peers"]) == {cases.DENSE, cases.DENSE_TF32, cases.TORCH_SDDMM}
    assert found["peers"][cases.DENSE_TF32] == {"not_run": "only on a GPU"}
    dense = found["peers"][cases.DENSE]
    assert dense["ratio_vs_ours"] == dense["ops"][MAIN]["ratio"] == pytest.approx(1.0)
    assert dense["ops"][MAIN]["rounds"] >= 7
    assert 0 < found["ours"]["limit"]["forward"]["percent"] < 100
    judged = {figure.what: figure for figure in gpu_case.judged(case, found)}
    assert judged["times faster than dense, forward + backward: 40→30, 90 %, batch 8"].word == "kept"
    assert judged["of this machine's limit, forward: 40→30, 90 %, batch 8"].word == "MISSED"
    assert found["ours"]["limit"]["backward"]["verdict"] == "SAME"  # our call against itself
    assert judged["fp32, backward, of the limit: 40→30, 90 %, batch 8"].word == "told"


def test_peers_that_no_time_is_left_for_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "peaks", lambda device, threads, refresh=False: RATES)
    monkeypatch.setattr(gpu_case, "PEERS", (cases.DENSE,))
    case = Case("tiny", (Shape(40, 30, 0.1), Shape(40, 30, 0.3)), 8)
    found = gpu_case.measure(case, "cpu", -1.0, Run(), CountingClock())
    assert [point["peers"][cases.DENSE] for point in found["points"]] == [{"not_run": "no time left: -1 s a case"}] * 2
    assert {figure.word for figure in gpu_case.judged(case, found) if "dense" in figure.what} == {"not run"}


def test_several_calls_are_timed_as_one() -> None:
    seen: list[int] = []
    calls = device.Calls(seen.append, 3, "cpu")
    calls.run()
    assert (seen, calls.n, calls.is_recorded) == ([0, 1, 2], 3, False)
    times = [device.Calls(seen.append, n, "cpu").ms(CountingClock(lambda: len(seen))) for n in (1, 3)]
    assert times == pytest.approx([1.0, 1.0])  # of each call, however many are taken together


def test_the_limit_of_a_case_is_that_of_its_gathers() -> None:
    shape, batch = Shape(50_000, 50_000, 0.001), 64
    works = share.works(shape, batch, 4)
    assert works["forward"].gather_bytes == 2_500_000 * 256
    assert works["backward"].flops == 2 * works["forward"].flops
    bound = share.least(works["forward"], shape, batch, RATES)
    assert bound.bound == "gather"
    assert bound.seconds == pytest.approx(2_500_000 * (256 + 8) / 6e12, rel=0.02)
    half = share.least(share.works(shape, batch, 2)["forward"], shape, batch, RATES)
    assert half.seconds < 0.6 * bound.seconds


def test_what_is_faster_than_the_limit_is_measured_again_and_then_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def peaks(device: str, threads: int, refresh: bool = False) -> Peaks:
        asked.append(refresh)
        return RATES

    monkeypatch.setattr(share, "peaks", peaks)
    shape = Shape(50_000, 50_000, 0.001)
    with pytest.raises(Wrong, match="forward at"):
        share.of_limit(shape, 64, 4, {"forward": 0.05, "backward": 1.0}, "cuda", 1)
    assert asked == [False, True]
    found = share.of_limit(shape, 64, 4, {"forward": 0.22, "backward": 0.44}, "cuda", 1)
    assert found["forward"]["percent"] == pytest.approx(50, rel=0.02)


@pytest.mark.parametrize("shape", [(77, 101, None, 5), (30, 50, 7, 4)])
def test_the_answers_of_the_checks_are_those_of_the_layer(shape: tuple[int, int, int | None, int]) -> None:
    one = checks.layer(*shape, torch.float32, "cpu")
    x, values = one.x.t().requires_grad_(), one.values.requires_grad_()
    y = sparse_linear(x, values, one.pattern)
    dx, dw = torch.autograd.grad(y, (x, values), one.dy.t())
    results = (y.detach().t(), dx.t(), dw)
    assert one.error(results) <= 1
    assert one.error((results[0], results[1], 1.001 * dw)) > 1
    if shape[2] is None:
        empty = torch.bincount(one.pattern.row(), minlength=77) == 0
        assert bool(empty[7])


def test_every_rate_is_told() -> None:
    told = {figure.what: figure.value for figure in rates.told(RATES)}
    assert told["l2, rows of 256 bytes by index"] == pytest.approx(6000)
    assert told["matrix product, tf32"] == pytest.approx(400)
    assert told["shortest kernel"] == pytest.approx(1)


def test_other_tiles_fill_their_warps_too() -> None:
    chosen = Tile(64, 8, 8, 4, 4)
    found = list(tiles.others(chosen))
    assert found[0] == chosen
    assert len(set(found)) == len(found) == len(tiles._WARPS) * len(tiles._UNROLLS)
    assert all(tile.rows * tile.batch // tile.vector == 32 * tile.warps for tile in found)
    assert replace(chosen, warps=1, rows=2) in found


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checks_pass_on_this_gpu(dtype: torch.dtype) -> None:
    one = checks.layer(*checks.SHAPES[1], dtype, "cuda")
    assert one.error(one.results()) <= 1
    assert checks._differing(one.results(), checks._from_graph(one, one.results())) == 0


@pytest.mark.gpu
def test_every_tile_of_the_search_computes_the_same() -> None:
    one = checks.layer(500, 600, 20, 64, torch.float32, "cuda")
    for tile in tiles.others(Tile(64, 8, 8, 4, 4)):
        y = triton_forward(one.x, one.values, one.pattern, tile=tile)
        dx, dw = triton_backward(one.dy, one.x, one.values, one.pattern, True, True, tile=tile)
        assert one.error((y, dx, dw)) <= 1
