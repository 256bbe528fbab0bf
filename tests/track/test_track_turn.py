"""One uploader works and at most one waits, however many drivers a home has."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from track_homes import filled_home

from sparsefleet.fleet.interrupts import Interrupts
from sparsefleet.fleet.uploader import Uploader
from sparsefleet.ledger import open_ledger
from sparsefleet.track.upload import _Turn


def test_one_works_one_waits_and_a_third_goes(tmp_path: Path) -> None:
    with _Turn(tmp_path) as first, _Turn(tmp_path) as third:
        with _Turn(tmp_path) as second:
            assert first.is_mine()
            assert not first.is_awaited()
            assert (second.is_mine(), second.is_next()) == (False, True)
            assert first.is_awaited()
            assert (third.is_mine(), third.is_next()) == (False, False)
        assert not first.is_awaited()  # the kernel freed the place of one that died
        assert third.is_next()


def test_who_waited_takes_over_and_leaves_its_place_to_another(tmp_path: Path) -> None:
    with _Turn(tmp_path) as second, _Turn(tmp_path) as third:
        with _Turn(tmp_path) as first:
            assert first.is_mine()
            assert second.is_next()
        assert second.is_mine()
        assert not second.is_awaited()
        assert third.is_next()
        assert second.is_awaited()


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_for_mlflow_at_once_and_everything_still_waits(tmp_path: Path) -> None:
    filled_home(tmp_path, 1)
    told: list[str] = []
    with socket.socket() as silent, open_ledger(tmp_path) as ledger, Interrupts(tmp_path, "quick-12345678") as interrupts:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # it connects, and nobody ever answers
        uploader = Uploader(
            tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", lambda event: told.append(str(event.data.get("text", "")))
        )
        uploader.start()
        process, before = uploader._process, ledger.outbox_size()
        assert process is not None
        try:
            threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            begun = time.monotonic()
            uploader.finish(ledger, interrupts)
            assert 1.5 < time.monotonic() - begun < 12
            assert ledger.outbox_size() == before
            assert any("items wait for MLflow; they are sent in the background" in text for text in told)
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
