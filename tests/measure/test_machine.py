from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.measure import machine, nvidia

SMI = """#!/bin/sh
case "$1" in
*clocks_throttle_reasons.active*) echo 'Field "clocks_throttle_reasons.active" is not a valid field to query.'; exit 2 ;;
--query-gpu=uuid,driver_version*) echo "GPU-1, 570.1, 700.00, Enabled, Disabled, Default, Enabled, 1980, 2619, [N/A]" ;;
--query-gpu=*) echo "GPU-1, 41, 345, 2619, 78.20, 0"; echo "GPU-2, 35, 1980, 2619, 110.00, 97" ;;
--query-compute-apps=*) echo "GPU-1, 17, 1024"; echo "GPU-2, 23, [N/A]" ;;
esac
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CPU", "PROC", "CGROUP"):
        monkeypatch.setattr(machine, name, tmp_path)
    return tmp_path


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_nothing_readable_is_none_and_not_an_error(files: Path) -> None:
    assert machine.governor() is machine.turbo() is machine.smt() is machine.cpu_quota() is machine.pressure("cpu") is None
    assert machine.steal_since_boot() is None
    assert machine.meminfo() == machine.caches() == {}
    found = machine.watch(0.001)
    assert (found.steal, found.hogs) == (None, ())


def test_files_of_a_real_server(files: Path) -> None:
    write(
        files, cpu0__cpufreq__scaling_governor="powersave\n", intel_pstate__no_turbo="0\n", smt__active="1\n", stat="cpu 1 1 1 5 0 0 0 2\n"
    )
    write(files, meminfo="SwapTotal:  8 kB\nSwapFree:  3 kB\nHugePages_Total:  0\n")
    (files / "cpu.max").write_text("150000 100000\n")
    write(files, pressure__cpu="some avg10=12.50 avg60=3.00 avg300=1.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    for index, (level, kind, size) in enumerate([("1", "Data", "48K"), ("1", "Instruction", "32K"), ("3", "Unified", "32M")]):
        write(files / f"cpu0/cache/index{index}", level=level, type=kind, size=size)
    assert (machine.governor(), machine.turbo(), machine.smt()) == ("powersave", "on", "on")
    assert machine.cpu_quota() == 1.5
    assert machine.pressure("cpu") == 12.5
    assert machine.steal_since_boot() == 0.2
    assert machine.meminfo() == {"SwapTotal": 8192, "SwapFree": 3072}
    assert machine.caches() == {1: 48 * 2**10, 3: 32 * 2**20}


def test_quota_of_the_first_cgroup_version_and_none_without_a_limit(files: Path) -> None:
    quota = files / "cpu/cpu.cfs_quota_us"
    write(files, cpu__x="")
    quota.write_text("50000")
    (files / "cpu/cpu.cfs_period_us").write_text("100000")
    assert machine.cpu_quota() == 0.5
    quota.write_text("-1")
    assert machine.cpu_quota() is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_busy_process_of_others_is_named_and_this_one_is_not() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(20):
            found = {each.pid: each for each in machine.watch(0.2).hogs}
            if hog.pid in found:
                break
        assert 0 < found[hog.pid].cpus <= 1.2
        assert found[hog.pid].name.startswith("python")
        assert not found.keys() & machine._lineage()
    finally:
        hog.kill()
        hog.wait()


def test_gpus_as_the_tool_tells_them(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    (stable,) = nvidia.query(nvidia.STABLE, str(tool))
    assert (stable["power.limit"], stable["persistence_mode"]) == ("700.00", "Enabled")
    first, second = nvidia.query(nvidia.NOW, str(tool))
    assert "clocks_throttle_reasons.active" not in first, "this driver does not know the field"
    assert (first["temperature.gpu"], second["utilization.gpu"]) == ("41", "97")
    assert nvidia.compute_processes(str(tool)) == [("GPU-1", 17, 2**30), ("GPU-2", 23, None)]


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", None])
def test_no_tool_or_a_broken_one_is_not_readable(tmp_path: Path, script: str | None) -> None:
    tool = tmp_path / "smi"
    if script:
        tool.write_text(script)
        tool.chmod(0o755)
    assert nvidia.query(nvidia.NOW, str(tool)) == []
    assert nvidia.compute_processes(str(tool)) is None


GIB = 2**30


def container(folder: Path, limit: str, used: int, cached: int) -> None:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [
        (str(4 * GIB), 3 * GIB, GIB, 2 * GIB),  # the page cache goes when it is asked to
        (str(64 * GIB), 3 * GIB, 0, 8 * GIB),  # the machine has less than the container may use
        ("max", 3 * GIB, 0, 8 * GIB),
        (str(2 * GIB), 3 * GIB, 0, 0),
    ],
)
def test_free_memory_is_what_the_machine_and_the_container_both_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: int, cached: int, free: int
) -> None:
    container(tmp_path, limit, used, cached)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "meminfo", lambda: {"MemAvailable": 8 * GIB})
    assert machine.memory_free() == free


def test_free_memory_of_an_older_container_and_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "meminfo", dict)
    assert machine.memory_free() is None
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text(str(4 * GIB))
    (old / "memory.usage_in_bytes").write_text(str(GIB))
    (old / "memory.stat").write_text(f"total_inactive_file {GIB // 2}\n")
    assert machine.memory_free() == 3.5 * GIB
