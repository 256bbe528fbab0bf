"""What the driver says of a GPU, as reasons against a figure; no GPU is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsefleet.measure import gpu, nvidia
from sparsefleet.measure.contention import drop_reasons
from sparsefleet.measure.gpu import Look, conditions, held_back, look, look_when_cool, rated_mhz, uuid_of

from .bodies import samples

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2"]
US = 42


def seen(*pids: int, held_back: tuple[str, ...] = ()) -> Look:
    return Look(frozenset(pids), held_back)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (seen(), seen(US), []),
        (seen(), seen(900), []),  # in a container the driver knows us by another number
        (seen(), seen(), []),
        (Look(None, ()), Look(None, ()), []),
        (seen(7), seen(7, US), ["another process used the device: pid 7"]),
        (seen(7), seen(US), ["another process used the device: pid 7"]),  # it went away while we measured
        (seen(), seen(7, US), ["another process used the device: pid 7"]),
        (seen(7), seen(7, 900), ["another process used the device: pid 7"]),
        (seen(), seen(7, 900), ["another process used the device: pid 7"]),
        (seen(), seen(US, held_back=("power brake",)), ["the device was still throttled: power brake"]),
        (seen(held_back=("power brake",)), seen(US), ["the device was still throttled: power brake"]),
    ],
)
def test_strangers_and_heat_speak_against_a_figure(before: Look, after: Look, said: list[str]) -> None:
    assert conditions(before, after, US) == said


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000004", ()),  # power cap: how the GPU always works
        ("0x0000000000000020", ("software thermal slowdown",)),
        ("0x0000000000000048", ("hardware slowdown", "hardware thermal slowdown")),
        ("[N/A]", ()),
        ("", ()),
    ],
)
def test_what_holds_a_clock_back(mask: str, said: tuple[str, ...]) -> None:
    assert held_back({"clocks_throttle_reasons.active": mask}) == said


@pytest.mark.parametrize(
    ("device", "visible", "uuid"),
    [
        ("cuda", None, "GPU-aaaa-1"),
        ("cuda:1", None, "GPU-bbbb-2"),
        ("cuda:0", "1", "GPU-bbbb-2"),
        ("cuda:1", "1,0", "GPU-aaaa-1"),
        ("cuda", "GPU-bbbb", "GPU-bbbb-2"),
        ("cuda", "MIG-cccc", "MIG-cccc"),
        ("cuda:2", None, None),
        ("cuda:0", "5", None),
        ("cuda:0", "", None),
    ],
)
def test_one_gpu_has_one_name_however_a_process_numbers_it(device: str, visible: str | None, uuid: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert uuid_of(device, environment, UUIDS) == uuid


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the driver answers: two GPUs; the second one is used by pid 7."""
    now = [{"uuid": uuid, "clocks_throttle_reasons.active": "0x0"} for uuid in UUIDS]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stable = [
        {"uuid": UUIDS[0], "clocks.max.sm": "1980"},
        {"uuid": UUIDS[1], "clocks.applications.graphics": "1600", "clocks.max.sm": "1980"},
    ]
    monkeypatch.setattr(nvidia, "stable_facts", lambda: stable)
    monkeypatch.setattr(nvidia, "facts_now", lambda: now)
    monkeypatch.setattr(nvidia, "compute_processes", lambda: [(UUIDS[1], 7, 1000)])
    return now


def test_a_look_is_of_its_own_gpu(driver: list[dict[str, str]]) -> None:
    assert (look("cuda:0").pids, look("cuda:1").pids) == (frozenset(), frozenset({7}))
    assert (rated_mhz("cuda:0"), rated_mhz("cuda:1"), rated_mhz("cuda:2")) == (1980.0, 1600.0, None)


def test_a_hot_gpu_is_waited_for(driver: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def cools(seconds: float) -> None:
        slept.append(seconds)
        driver[0]["clocks_throttle_reasons.active"] = "0x0" if len(slept) == 2 else "0x20"

    monkeypatch.setattr(gpu.time, "sleep", cools)
    driver[0]["clocks_throttle_reasons.active"] = "0x20"
    assert look_when_cool("cuda:0").held_back == ()
    assert len(slept) == 2
    driver[0]["clocks_throttle_reasons.active"], slept[:] = "0x20", [0.0] * 5
    assert look_when_cool("cuda:0").held_back == ("software thermal slowdown",)


def test_a_gpu_that_is_slow_all_the_time_is_held_against_its_rated_clock() -> None:
    slow = replace(samples(), clock="cuda", cpu_s={}, process_s={}, mhz={side: [1200.0] * 50 for side in ("dense", "sparse", "second")})
    assert set(drop_reasons(slow)) == {""}  # nothing to compare with
    assert set(drop_reasons(replace(slow, mhz_rated=1980.0))) == {"gpu_clock"}
    assert set(drop_reasons(replace(slow, mhz_rated=1500.0))) == {""}
