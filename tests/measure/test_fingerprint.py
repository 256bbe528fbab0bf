from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsefleet.measure import fingerprint as module
from sparsefleet.measure.fingerprint import fingerprint


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


def test_precision_flags_and_threads_change_the_id() -> None:
    before, precision, threads = fingerprint()["id"], torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("high")
        assert fingerprint()["id"] != before
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads + 1)
        assert fingerprint()["id"] != before
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
    assert fingerprint()["id"] == before


def test_files_that_are_not_there_are_said_to_be_unreadable(tmp_path: Path) -> None:
    assert module._text(tmp_path / "none") == module.NOT_READABLE
    assert module._lines(tmp_path / "none") == []
