"""magnitude and random, against lists that a reader can check."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from by_hand import connections
from hypothesis import given, settings, strategies as st
from sparsefleet_plugins.pruning.magnitude import Magnitude
from sparsefleet_plugins.pruning.random import Random

from sparsefleet import Connections, Rng, keep_best


def kept(plugin, conn, n):
    return conn.flat[keep_best(plugin.score(conn), n)].tolist()


def test_magnitude_keeps_the_largest():
    conn = connections([[0.1, -0.9, 0.0, 0.3], [-0.2, 0.8, 0.05, -0.4]])
    assert Magnitude().score(conn).tolist() == [0.1, 0.9, 0.3, 0.2, 0.8, 0.05, 0.4]
    assert kept(Magnitude(), conn, 3) == [1, 5, 7]  # -0.9, 0.8, -0.4


def test_magnitude_breaks_ties_by_position():
    # open_lth's `> sorted[k]` prunes one too many here and `>= sorted[k]` prunes none
    assert kept(Magnitude(), connections(torch.full((2, 4), -0.5)), 3) == [0, 1, 2]


@given(st.lists(st.floats(-2, 2, allow_nan=False, width=16), min_size=1, max_size=40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_magnitude_equals_the_slow_reference(values, n):
    n = min(n, len(values))
    conn = connections([values], mask=[[True] * len(values)])
    slow = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:n])
    assert kept(Magnitude(), conn, n) == slow


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [Magnitude(), Random()])
def test_more_than_2_to_the_24_connections(plugin):
    """torch.quantile and torch.multinomial refuse this many."""
    n = 2**24 + 3
    weight = Rng("big").at(torch.arange(n)).float()
    position = torch.arange(n)
    conn = Connections("layer", (1, n), torch.zeros(1, dtype=torch.int64).expand(n), position, weight)
    assert int(keep_best(plugin.score(conn), n - 12345).sum()) == n - 12345


def test_random_belongs_to_the_site():
    conn = connections(torch.ones(6, 7), rng=Rng(3, "prune", "layer", 0))
    score = Random().score(conn)
    assert torch.equal(Random().score(conn), score)  # reading draws nothing from the stream
    part = conn.select(torch.arange(conn.nnz) % 2 == 1)
    assert torch.equal(Random().score(part), score[1::2])  # whatever else is stored


def test_random_keeps_every_site_equally_often():
    n_kept = torch.zeros(20)
    for seed in range(600):
        conn = connections(torch.ones(4, 5), rng=Rng(seed, "prune", "layer", 0))
        n_kept[kept(Random(), conn, 5)] += 1
    share = n_kept / 600  # expectation 0.25, standard error 0.018
    assert share.min() > 0.25 - 5 * 0.018
    assert share.max() < 0.25 + 5 * 0.018


def test_random_is_the_same_in_every_process():
    """google-research/rigl seeded with Python's hash(), which changes with PYTHONHASHSEED."""
    code = (
        "import torch; from sparsefleet import Connections, Rng\n"
        "from sparsefleet_plugins.pruning.random import Random\n"
        "flat = torch.arange(1000)\n"
        "conn = Connections('layer', (10, 100), flat // 100, flat % 100, torch.zeros(1000), rng=Rng(1, 'prune', 'layer', 5))\n"
        "import hashlib; print(hashlib.sha256(Random().score(conn).numpy().tobytes()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    flat = torch.arange(1000)
    conn = Connections("layer", (10, 100), flat // 100, flat % 100, torch.zeros(1000), rng=Rng(1, "prune", "layer", 5))
    assert outputs == {hashlib.sha256(Random().score(conn).numpy().tobytes()).hexdigest()}
