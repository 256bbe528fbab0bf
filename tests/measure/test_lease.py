"""One measurement on a device at a time, on this node, whoever asks."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet import bodies
from sparsefleet.fleet.jobs import MEASURE_LIMIT_S
from sparsefleet.measure import gpu, lease
from sparsefleet.measure.config import groups
from sparsefleet.measure.lease import LEASE_WAIT_S, device_lease

from .trained import row_of, spec_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of this test's own, in a folder that is open to all as /run/lock is."""
    found = tmp_path / "locks"
    found.mkdir()
    found.chmod(0o1777)
    monkeypatch.setattr(lease, "FOLDERS", (str(tmp_path / "none"), str(found)))
    return found


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


def test_an_infrastructure_failure_names_the_lock_that_cannot_be_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "sparsefleet-measure-cpu.lock").symlink_to(tmp_path / "elsewhere")
    (job,) = groups([row_of(spec_of())], [8], ["step"])
    asked = {"workdir": str(tmp_path), "measure": {"job": job.model_dump(mode="json", by_alias=True), "model": "model"}}
    found = bodies.measure(asked, lambda told: None)
    assert found["state"] == "INFRA_FAILED"
    assert f"the lock {folder / 'sparsefleet-measure-cpu.lock'} for measurements cannot be opened" in found["reason"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_system_without_locks_is_no_fault_of_what_was_to_be_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lease.fcntl, "flock", none_left)
    with pytest.raises(BackendUnreachable, match="cannot be opened"), device_lease("cpu", 0.0):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder / "sparsefleet-measure-cpu.lock")
    with pytest.raises(BackendUnreachable, match="no regular file"), device_lease("cpu", 0.0):
        pass


def test_a_file_of_ours_that_somebody_linked_to_the_lock_stays_private(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    os.link(secret, folder / "sparsefleet-measure-cpu.lock")
    with device_lease("cpu", 0.0):
        assert secret.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_was_removed_while_it_was_waited_for_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "sparsefleet-measure-cpu.lock"
    opened = lease._open

    def and_removed(place: Path) -> int:
        fd = opened(place)
        monkeypatch.setattr(lease, "_open", opened)
        place.unlink()
        return fd

    monkeypatch.setattr(lease, "_open", and_removed)
    with device_lease("cpu", 5.0), pytest.raises(BackendUnreachable), device_lease("cpu", 0.0):
        pass
    assert path.exists()


def test_a_node_without_a_folder_for_all_says_so(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(BackendUnreachable, match="not open to all users"), device_lease("cpu", 0.0):
        pass


def _elsewhere(act: Callable[[], object]) -> str:
    """What a forked process that became somebody else says of the lease."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            with device_lease("cpu", 0.0):
                os.write(write, b"held")
        except BackendUnreachable as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as told:
        return told.read()


def test_a_job_with_a_tmpdir_of_its_own_waits_for_the_same_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real folder
    device = f"cpu-of-test-{os.getpid()}"
    monkeypatch.setattr(lease, "_known_to_all", lambda _: device)

    def own() -> None:
        os.environ["TMPDIR"] = str(tmp_path)
        tempfile.tempdir = None

    try:
        with device_lease("cpu", 0.0):
            assert f"process {os.getpid()} holds the lock" in _elsewhere(own)
        assert _elsewhere(own) == "held"
    finally:
        (lease._folder() / f"sparsefleet-measure-{device}.lock").unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_takes_turns_with_a_private_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is made under our umask, and opened by who may not write it, nor could make it: with fs.protected_regular neither may root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(lease, "FOLDERS", (name,))
        before = os.umask(0o077)
        try:
            with device_lease("cpu", 0.0):
                assert "was being measured by someone else" in _elsewhere(lambda: os.setuid(65534))
        finally:
            os.umask(before)
        assert _elsewhere(lambda: os.setuid(65534)) == "held"
        (Path(name) / "sparsefleet-measure-cpu.lock").chmod(0o600)
        assert "cannot be opened" in _elsewhere(lambda: os.setuid(65534))


def test_who_waits_is_told_for_whom(folder: Path) -> None:
    told: list[str] = []
    with device_lease("cpu", 0.0), pytest.raises(BackendUnreachable), device_lease("cpu", 0.3, told.append):
        pass
    assert told == [f"waits for cpu: process {os.getpid()} measures on it"]
