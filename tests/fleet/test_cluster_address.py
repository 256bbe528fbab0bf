"""An address at which nobody listens is said at once: Ray alone would try for minutes."""

import time

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.cluster import Cluster


def test_nobody_listens():
    begun = time.monotonic()
    with pytest.raises(BackendUnreachable, match=r"Ray at '127.0.0.1:9' cannot be reached"), Cluster("127.0.0.1:9", None):
        pass
    assert time.monotonic() - begun < 20
