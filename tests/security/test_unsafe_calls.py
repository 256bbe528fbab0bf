"""SE-06: nothing in the product runs what a file says, and the check that says so sees each kind when it is there."""

from __future__ import annotations

import pytest

from benchmarks.security.unsafe import SEEDED, hits, hits_of


def test_the_product_loads_no_pickle_and_evaluates_no_text():
    assert hits() == []


@pytest.mark.parametrize("name", SEEDED)
def test_a_planted_call_is_seen(name):
    assert hits_of(SEEDED[name])


@pytest.mark.parametrize(
    "source", ["model.eval()", "import pickle\npickle.dumps(1)", "import numpy\nnumpy.load('x', allow_pickle=False)", "load('x')"]
)
def test_what_is_harmless_is_not_flagged(source):
    assert hits_of(source) == []
