"""One measurement on a device at a time, on this node, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet import bodies
from sparsefleet.fleet.jobs import MEASURE_LIMIT_S
from sparsefleet.measure import gpu
from sparsefleet.measure.config import groups
from sparsefleet.measure.lease import LEASE_WAIT_S, device_lease

from .trained import row_of, spec_of


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_device_is_leased_once_at_a_time_and_freed_afterwards() -> None:
    with device_lease("cpu", 0.0):
        with pytest.raises(BackendUnreachable, match="cpu was being measured by someone else"), device_lease("cpu", 0.0):
            pass
        with device_lease("cuda:0", 0.0):
            pass
    with device_lease("cpu", 0.0):
        pass


def test_a_gpu_is_leased_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes see the same GPU under other numbers."""
    monkeypatch.setattr(gpu, "uuid_of", {"cuda:0": "GPU-a", "cuda:1": "GPU-a", "cuda:2": "GPU-b"}.get)
    taken = pytest.raises(BackendUnreachable, match=r"sparsefleet-measure-GPU-a\.lock")
    with device_lease("cuda:0", 0.0), device_lease("cuda:2", 0.0), taken, device_lease("cuda:1", 0.0):
        pass


def test_waiting_for_the_lease_does_not_use_up_the_time_of_the_measurement() -> None:
    assert MEASURE_LIMIT_S >= LEASE_WAIT_S + 900


def test_a_device_that_stays_taken_is_no_fault_of_what_was_to_be_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LEASE_WAIT_S", 0.0)
    (job,) = groups([row_of(spec_of())], [8], ["step"])
    asked = {"workdir": str(tmp_path), "measure": {"job": job.model_dump(mode="json", by_alias=True), "model": "model"}}
    with device_lease("cpu", 0.0):
        found = bodies.measure(asked, lambda told: None)
    assert found["state"] == "INFRA_FAILED"
    assert "was being measured by someone else" in found["reason"]
