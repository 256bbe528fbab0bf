"""The watch on the head of a cluster: a real port that somebody stops listening to."""

from __future__ import annotations

import socket
import threading
import time

from sparsefleet.fleet.head import GONE_S, HeadWatch


def test_a_port_without_a_listener_is_told_within_seconds() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    told = threading.Event()
    watch = HeadWatch(f"127.0.0.1:{listener.getsockname()[1]}", lambda reason: told.set())
    watch.start()
    assert not told.wait(1.5)
    listener.close()
    closed = time.monotonic()
    assert told.wait(GONE_S + 10.0)
    assert time.monotonic() - closed > GONE_S - 1.0
    assert watch.lost is not None
    assert "nobody listens" in watch.lost


def test_it_ends_when_it_is_told_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = HeadWatch(f"127.0.0.1:{listener.getsockname()[1]}")
        watch.start()
        watch.stop()
        watch.join(10.0)
        assert not watch.is_alive()
        assert watch.lost is None
