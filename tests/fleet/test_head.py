"""The watch on the head of a cluster: a real port, whose listener answers, says nothing, or has gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet import head
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.head import GONE_S, HeadWatch


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """It takes connections, as the kernel does for a process that is frozen."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def answering(listener: socket.socket) -> socket.socket:
    """It says a word to everybody."""

    def answer() -> None:
        while listener.fileno() >= 0:
            try:
                with listener.accept()[0] as link:
                    link.recv(24)
                    link.sendall(b"\0")
            except OSError:  # closed
                return

    threading.Thread(target=answer, daemon=True).start()
    return listener


def address(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_port_without_a_listener_is_told_within_seconds(answering: socket.socket) -> None:
    told = threading.Event()
    watch = HeadWatch(address(answering), lambda reason: told.set())
    watch.start()
    assert not told.wait(1.5)
    answering.shutdown(socket.SHUT_RDWR)  # ends the thread's wait
    answering.close()
    closed = time.monotonic()
    assert told.wait(GONE_S + 10.0)
    assert time.monotonic() - closed > GONE_S - 1.0
    assert watch.lost is not None
    assert "nobody listens" in watch.lost


def test_a_listener_that_says_nothing_is_told_when_the_lease_is_over(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "SILENT_S", 3.0)
    told = threading.Event()
    watch = HeadWatch(address(listener), lambda reason: told.set())
    begun = time.monotonic()
    watch.start()
    assert told.wait(20.0)
    assert time.monotonic() - begun > 3.0
    assert watch.lost is not None
    assert "does not answer" in watch.lost


def test_nobody_joins_a_cluster_whose_head_says_nothing(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsefleet.fleet.cluster.knock", lambda place: head.knock(place, 2.0))  # not half a minute
    begun = time.monotonic()
    with pytest.raises(BackendUnreachable, match="cannot be reached") as caught, Cluster(address(listener), None):
        pass
    assert time.monotonic() - begun < 10
    assert "has said nothing for 2 s" in (caught.value.cause or "")


def test_it_ends_when_it_is_told_to(answering: socket.socket) -> None:
    watch = HeadWatch(address(answering))
    watch.start()
    watch.stop()
    watch.join(10.0)
    assert not watch.is_alive()
    assert watch.lost is None
