from __future__ import annotations

import pytest

from sparsefleet.measure.clock import CpuClock, read_machine
from sparsefleet.measure.contention import windows
from sparsefleet.measure.cpus import cpus_allowed
from sparsefleet.measure.estimate import Plan, compare
from sparsefleet.measure.verdict import doubts, judge

from .synthetic import Side, SyntheticClock, lognormal

SIDES = {"dense": Side("D", 1e-3), "sparse": Side("S", 5e-4), "second": Side("E", 1e-3)}


def run(clock: SyntheticClock):
    return compare(SIDES["dense"], SIDES["sparse"], second=SIDES["second"], inputs=[0], plan=Plan("k"), clock=clock)


def test_one_thread_drops_exactly_the_rounds_in_which_it_was_kept_from_running() -> None:
    """Blocks 30 to 179 are the rounds: the hog stretches the second block of every fifth round by 30 %."""
    stretch = SyntheticClock(hog=lambda block: 1.3 if block >= 30 and (block - 30) % 15 == 1 else 1.0)
    estimate, samples = run(stretch)
    assert sum(samples.warmup[f"{side}_calls"] for side in ("dense", "sparse", "second")) > 0
    hit = [i for i, reason in enumerate(samples.dropped) if reason]
    assert hit == list(range(0, 50, 5))
    assert estimate.dropped == {"cpu_contention": 10}
    assert estimate.kept == 40
    assert estimate.speedup == pytest.approx(2.0, rel=1e-12)
    assert len(samples.seconds["dense"]) == 50  # the dropped ones stay in the raw samples
    assert judge(estimate, "screen") == ("FASTER", [])


def test_four_percent_is_kept_and_six_is_dropped() -> None:
    assert run(SyntheticClock(hog=lambda block: 1.04))[0].kept == 50
    assert run(SyntheticClock(hog=lambda block: 1.06))[0].kept == 0


def test_nothing_kept_means_no_speedup_and_a_note() -> None:
    estimate, samples = run(SyntheticClock(hog=lambda block: 1.5))
    assert estimate.speedup is None
    assert estimate.ci95 is None
    assert estimate.dense_s["median"] == pytest.approx(1.5e-3)
    assert set(samples.dropped) == {"cpu_contention"}
    assert judge(estimate, "screen") == (
        "NOT_TRUSTWORTHY",
        ["0 of 50 rounds kept (dropped: cpu_contention 50)", "too few rounds for an interval"],
    )


def test_half_kept_is_flagged_below_the_gate() -> None:
    estimate, _ = run(SyntheticClock(hog=lambda block: 1.5 if block >= 30 and (block - 30) % 15 < 9 else 1.0))
    assert estimate.kept == 20  # 40 %
    assert any("20 of 50 rounds kept" in doubt for doubt in doubts(estimate))


def test_several_threads_compare_a_blocks_cpu_share_with_its_sides_own() -> None:
    """A side that uses less CPU by nature (waits at barriers) is not dropped for it; a block that lost CPU is."""
    uneven = SyntheticClock(kind="cpu-n", hog=lambda block: 1.4 if block in (40, 41, 100) else 1.0)
    estimate, _ = run(uneven)
    assert estimate.dropped == {"cpu_contention": 3 if 40 // 3 != 41 // 3 else 2}


@pytest.mark.parametrize(("kind", "steal", "foreign", "reason"), [
    ("cpu-n", 0.5, 0.0, "steal"), ("cpu-n", 0.0, 0.5, "foreign_cpu"), ("cpu-1", 0.5, 0.0, "steal"), ("cpu-1", 0.0, 0.5, ""),
    ("cpu-n", 0.001, 0.001, ""),
])  # fmt: skip
def test_the_systems_counters(kind: str, steal: float, foreign: float, reason: str) -> None:
    clock = SyntheticClock(lognormal(0.001), kind=kind)
    clock.steal_rate, clock.foreign_rate = steal, foreign
    estimate, _ = run(clock)
    assert estimate.dropped == ({reason: 50} if reason else {})


def test_windows_are_at_least_a_second_and_cover_every_round_once() -> None:
    assert windows([0.0, 0.4, 0.8, 1.2, 1.6, 2.4, 2.6]) == [(0, 3), (3, 6)]
    assert windows([0.0, 0.1, 0.2]) == [(0, 2)]
    assert windows([0.0, 1.5, 3.0]) == [(0, 1), (1, 2)]


def test_the_real_clock_reads_the_thread_and_the_machine() -> None:
    clock = CpuClock(1)
    reading = clock.time(lambda n: sum(range(n)), [1000, 2000], 1, 50)
    assert reading.seconds > 0
    assert reading.cpu_s is not None
    assert 0 < reading.cpu_s < reading.seconds * 1.01 + 1e-3
    before, after = read_machine(cpus_allowed()), clock.machine()
    if before is not None and after is not None:
        assert after.wall_s >= before.wall_s
        assert after.busy_s >= before.busy_s
