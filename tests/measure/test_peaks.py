from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsefleet.measure import peaks as module
from sparsefleet.measure.clock import Machine
from sparsefleet.measure.peaks import measure, peaks
from sparsefleet.measure.rates import Level, Peaks, better

GATHER = {4: 1.2e10, 64: 6.8e10, 256: 2.6e11, 1024: 1.028e12}
HAND = Peaks(
    machine="fp:x",
    device="cpu",
    threads=1,
    levels=(
        Level("l2", 1000, 1000, read=1e11, stream=2e11, gather=GATHER),
        Level("dram", None, None, read=1e10, stream=2e10, gather={row: rate / 10 for row, rate in GATHER.items()}),
    ),
    flops={"fp32": 1e12},
    launch_s=1e-6,
)


@pytest.fixture(scope="module")
def here() -> Peaks:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = measure("cpu", 1, "fp:here")
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    return found


def test_every_limit_of_this_machine_is_a_finite_rate(here: Peaks) -> None:
    for level in here.levels:
        assert 1e8 < level.read <= level.stream < 1e14
        assert list(level.gather) == list(module.ROW_BYTES)
        assert all(1e7 < rate < 1e14 for rate in level.gather.values())
    assert 1e9 < here.flops["fp64"] <= 1.2 * here.flops["fp32"] < 1e15
    assert 1e-8 < here.launch_s < 1e-3


def test_a_further_level_is_never_faster(here: Peaks) -> None:
    assert here.levels[-1].name == "dram" and here.levels[-1].stream_room is None
    for near, far in zip(here.levels, here.levels[1:], strict=False):
        assert near.read >= far.read and near.stream >= far.stream
        assert all(near.gather[row] >= far.gather[row] for row in module.ROW_BYTES)


def test_json_and_back_and_an_id_that_follows_the_figures(here: Peaks) -> None:
    values = json.loads(json.dumps(here.to_json(), allow_nan=False))
    assert Peaks.from_json(values) == here
    assert Peaks.from_json(values).id == here.id
    assert replace(here, launch_s=here.launch_s * 2).id != here.id


def test_bytes_come_from_the_level_that_holds_them() -> None:
    assert HAND.stream_s(500, 1000) == pytest.approx(500 / 2e11)
    assert HAND.stream_s(500, 1000, reads_only=True) == pytest.approx(500 / 1e11)
    assert HAND.stream_s(4000, 4000) == pytest.approx(1000 / 2e11 + 3000 / 2e10)
    assert HAND.stream_s(0, 0) == 0


def test_rows_between_the_measured_sizes_are_interpolated_in_time() -> None:
    ns = [HAND.gather_s(1e9, row, 1000, index_bytes=4) for row in (64, 256, 1024)]
    assert ns == pytest.approx([1.0, 1.0, 1.0]), "as measured, and the table fits the cache"
    assert HAND.gather_s(1e9, 100, 1000, 4) == pytest.approx(1.0)
    assert HAND.gather_s(1e9, 4, 1000, 8) == pytest.approx(1.0)
    assert HAND.gather_s(1e9, 10276, 1000, 4) == pytest.approx(10.0), "a longer row goes at the rate of the longest"
    assert HAND.gather_s(1e9, 64, 2000, 4) == pytest.approx(0.5 * 1.0 + 0.5 * 10.0), "half of the table lies in DRAM"


def test_the_better_of_two_measurements_counts() -> None:
    slow = replace(HAND, launch_s=2e-6, flops={"fp32": 5e11, "bf16": 2e12}, levels=(replace(HAND.levels[0], read=5e10), HAND.levels[1]))
    assert better(HAND, slow) == better(slow, HAND) == replace(HAND, flops={"fp32": 1e12, "bf16": 2e12}, takes=2)


def test_measured_once_then_read_and_refreshed_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_CACHE", str(tmp_path))
    rates = iter([1e-6, 4e-6, 5e-7])
    monkeypatch.setattr(module, "measure", lambda device, threads, name: replace(HAND, machine=name, threads=threads, launch_s=next(rates)))
    first = peaks("cpu", 2)
    assert first.machine.startswith("fp:") and first.launch_s == 1e-6
    assert peaks("cpu", 2) == first, "read"
    assert peaks("cpu", 1).launch_s == 4e-6, "other threads, another file"
    assert peaks("cpu", 2, refresh=True).launch_s == 5e-7
    (path,) = [p for p in tmp_path.glob("peaks-*.json") if json.loads(p.read_text())["threads"] == 2]
    path.write_text(path.read_text()[:50])
    rates = iter([math.pi])
    assert peaks("cpu", 2).launch_s == math.pi, "a torn file is measured anew"
    assert not list(tmp_path.glob("*.tmp"))


def test_limits_taken_beside_a_neighbour_are_taken_again_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEFLEET_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "measure", lambda device, threads, name: replace(HAND, disturbed=0.5))
    assert [peaks("cpu", 2).takes for _ in range(7)] == [1, 2, 3, 4, 5, 5, 5]
    monkeypatch.setattr(module, "measure", lambda device, threads, name: replace(HAND, disturbed=0.01))
    assert [peaks("cpu", 1).takes for _ in range(2)] == [1, 1]


def test_the_share_of_others_is_what_this_process_did_not_use() -> None:
    before, after = Machine(0.0, 0.0, 10.0, 1.0), Machine(2.0, 3.0, 13.5, 1.1)
    assert module._taken_by_others(before, after, 2) == pytest.approx((0.5 + 0.1) / 2 / 2)
    assert module._taken_by_others(None, after, 2) == module._taken_by_others(after, after, 2) == 0.0


@pytest.mark.gpu
def test_a_gpu_has_limits_too() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = measure("cuda", 1, "fp:gpu")
    assert [level.name for level in found.levels] == ["l2", "dram"]
    assert found.flops["bf16"] > found.flops["fp32"]
