"""An address at which nobody listens is said at once: Ray alone would try for minutes."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.remote_driver import start_driver


def join(address: str) -> None:
    with Cluster(address, None):
        pass


def start(address: str) -> None:
    start_driver(address, Path("home"), "sweep", ["true"], Path("log"))


@pytest.mark.parametrize("reach", [join, start])
def test_nobody_listens(reach: Callable[[str], None]) -> None:
    begun = time.monotonic()
    with pytest.raises(BackendUnreachable, match=r"Ray at '127.0.0.1:9' cannot be reached"):
        reach("127.0.0.1:9")
    assert time.monotonic() - begun < 20
