from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch

from sparsefleet.measure import fingerprint as module, machine
from sparsefleet.measure.fingerprint import differences, fingerprint


def test_two_takes_have_one_id_and_are_json() -> None:
    first, second = fingerprint(), fingerprint()
    assert first["id"] == second["id"]
    assert first["id"].startswith("fp:")
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_secrets_of_the_environment_stay_out_and_what_decides_speed_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    before = fingerprint()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    after = fingerprint()
    assert "hunter2" not in json.dumps(before)
    assert after["stable"]["environment"]["OMP_WAIT_POLICY"] == "ACTIVE"
    assert after["id"] != before["id"]


def test_threads_and_precision_are_flags_of_a_run_and_no_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before, precision, threads = fingerprint(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    try:
        torch.set_float32_matmul_precision("high")
        torch.set_num_threads(threads + 1)
        after = fingerprint()
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
    assert after["id"] == before["id"]
    assert after["flags"]["threads"] == threads + 1
    assert after["flags"]["matmul_precision"] == "high"
    assert after["flags"]["environment"]["OMP_NUM_THREADS"] == "7"


def test_differences_are_told_in_words() -> None:
    one = fingerprint()
    other = json.loads(json.dumps(one))
    assert differences(one, other) == []
    other["stable"]["cpu"]["model"] = "Other CPU"
    other["stable"]["software"]["torch_build"] += " and one line more"
    other["stable"]["gpus"] = [{"name": "H200", "memory_bytes": 1}]
    other["flags"]["threads"] = 64
    other["now"]["nice"] = 19
    assert differences(one, other) == [
        f"cpu model: {one['stable']['cpu']['model']} against Other CPU",
        *(["gpus:  against nothing"] if not one["stable"]["gpus"] else []),
        "gpus 0 memory bytes: nothing against 1",
        "gpus 0 name: nothing against H200",
        "software torch build: differs",
        f"threads: {one['flags']['threads']} against 64",
    ]


def test_every_installed_distribution_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, listed = module.installed(), dict(module.distributions())
    assert {name: listed[name] for name in ("torch", "numpy")} == {name: metadata.version(name) for name in ("torch", "numpy")}
    (tmp_path / "An_Odd.Name-1.2.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    module.distributions.cache_clear()
    try:
        assert dict(module.distributions())["an-odd-name"] == "1.2"
        assert module.installed() != before
        assert fingerprint()["id"] == fingerprint()["id"]
    finally:
        module.distributions.cache_clear()


def test_what_the_machine_does_not_show_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU", tmp_path)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert module._cpu()["governor"] == module._cpu()["smt"] == module.NOT_READABLE
    now = module._now()
    assert now["steal_share_since_boot"] == module.NOT_READABLE
    assert now["pressure"] == dict.fromkeys(("cpu", "memory", "io"), module.NOT_READABLE)
