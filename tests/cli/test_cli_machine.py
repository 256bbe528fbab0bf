from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsefleet.cli.machine import Finding, cpu_checks, gpu_checks, setting_checks
from sparsefleet.measure import machine
from tests.measure.test_machine import write

SMI = """#!/bin/sh
case "$1" in
--query-gpu=uuid,driver_version*) echo "GPU-1, 570.1, 700.00, Enabled, Enabled, Default, Disabled, 1980, 2619, [N/A]" ;;
--query-gpu=*) echo "GPU-1, 88, 900, 2619, 690.20, 0x0000000000000024, 0" ;;
--query-compute-apps=*) echo "GPU-1, 17, 1024" ;;
esac
"""


def noisy(findings: dict[str, Finding]) -> set[str]:
    return {what for what, finding in findings.items() if finding.is_noisy}


def by_name(findings: object) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}  # type: ignore[attr-defined]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CPU", "PROC", "CGROUP"):
        monkeypatch.setattr(machine, name, tmp_path)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return tmp_path


def test_a_machine_that_shows_nothing_is_not_called_noisy(files: Path) -> None:
    found = by_name(cpu_checks())
    assert noisy(found) == set()
    assert {found[what].found for what in ("cpu governor", "cpu turbo", "steal", "cpu pressure", "swap")} == {"not readable"}


def test_every_fault_of_a_bad_machine_is_found_with_what_to_do(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files, cpu0__cpufreq__scaling_governor="powersave", intel_pstate__no_turbo="0", smt__active="1")
    write(files, meminfo="SwapTotal:  1048576 kB\nSwapFree:  0 kB\n")
    write(files, pressure__cpu="some avg10=40.00 avg60=0 avg300=0 total=9", pressure__memory="some avg10=3.00 avg60=0 avg300=0 total=9")
    (files / "cpu.max").write_text("50000 100000")
    monkeypatch.setattr("os.getloadavg", lambda: (64.0, 0.0, 0.0))
    seen = machine.Window(0.1, 0.25, (*(machine.Hog(pid, "hog", 1.0) for pid in range(5)), machine.Hog(9, "calm", 0.01)))
    monkeypatch.setattr(machine, "watch", lambda seconds: seen)
    found = by_name(cpu_checks())
    assert noisy(found) == set(found), "every one of them"
    assert all(finding.fix for finding in found.values())
    assert found["neighbours"].found == "hog (0) 100%, hog (1) 100%, hog (2) 100% and 2 more"
    assert found["steal"].found == "25.0% of 0.10 s"
    assert found["cpu quota"].found.startswith("0.5 CPUs' time on ")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_real_neighbour_is_named() -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(20):
            found = by_name(cpu_checks())["neighbours"]
            if f"({hog.pid})" in found.found:
                break
        assert found.is_noisy and f"({hog.pid})" in found.found
    finally:
        hog.kill()
        hog.wait()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, set()),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, set()),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, {"threads"}),
        ({"OMP_NUM_THREADS": "4096"}, {"threads"}),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, {"precision"}),
        ({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "ATEN_CPU_CAPABILITY": "default"}, {"precision", "kernels"}),
    ],
)
def test_settings_behind_the_trials_back(environment: dict[str, str], expected: set[str]) -> None:
    assert noisy(by_name(setting_checks(environment))) == expected


def test_a_gpu_that_is_shared_hot_and_sliced(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    found = by_name(gpu_checks(str(tool)))
    assert noisy(found) == {"gpu 0 neighbours", "gpu 0 clock", "gpu 0 persistence", "gpu 0 MIG"}
    assert found["gpu 0 clock"].found == "900 MHz, 88 °C, held back by power cap and heat"
    (none,) = gpu_checks(str(tmp_path / "none"))
    assert not none.is_noisy and "not readable" in none.found


def test_looking_imports_no_torch_and_takes_no_time() -> None:
    code = "import sys; from sparsefleet.cli.machine import *; list(cpu_checks()); list(setting_checks()); print('torch' in sys.modules)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert time.perf_counter() - start < 5
