"""What fits on which node, counted by hand."""

from __future__ import annotations

import pytest

from sparsefleet.fleet.shape import Amount, Node, Shape

BIG = Node("b", "big", Amount(8, 2, 1000), Amount(3, 0.5, 400), ("H100",), {"zone": "a"})
SMALL = Node("s", "small", Amount(2, 0, 500), Amount(2, 0, 500))


@pytest.mark.parametrize(
    ("resources", "of_all", "of_free"),
    [
        ({"cpus": 1}, 8, 3),
        ({"cpus": 3}, 2, 1),
        ({"cpus": 1, "gpus": 0.25}, 8, 2),
        ({"cpus": 1, "gpus": 1}, 2, 0),
        ({"cpus": 1, "memory_mib": 300}, 3, 1),
        ({"cpus": 1, "accelerator": "H100", "labels": {"zone": "a"}}, 8, 3),
        ({"cpus": 1, "accelerator": "A100"}, 0, 0),
        ({"cpus": 1, "labels": {"zone": "b"}}, 0, 0),
        ({"cpus": 9}, 0, 0),
    ],
)
def test_small_trials_pack_until_one_thing_is_used_up(resources: dict[str, object], of_all: int, of_free: int) -> None:
    shape = Shape.of(resources)
    assert (BIG.fits(shape), BIG.fits_now(shape)) == (of_all, of_free)


def test_ten_tenths_of_a_device_are_ten_trials() -> None:
    assert Amount(16, 1, 0).holds(Shape(1, 0.1)) == 10


def test_resources_that_ask_for_the_same_are_one_shape() -> None:
    labels = {"zone": "a", "rack": "7"}
    assert Shape.of({"labels": labels}) == Shape.of({"cpus": 1, "gpus": 0, "memory_mib": None, "labels": dict(reversed(labels.items()))})


def test_a_shape_and_a_node_say_what_they_are() -> None:
    shape = Shape.of({"cpus": 2, "gpus": 0.5, "memory_mib": 4000, "accelerator": "H100", "labels": {"zone": "a"}})
    assert str(shape) == "2 CPUs, 0.5 GPUs (H100), 4,000 MiB, zone=a"
    assert str(BIG) == "big: 8 CPUs, 2 GPUs, 1,000 MiB (H100, zone=a)"


def test_what_is_short_is_named() -> None:
    assert BIG.lacks(Shape(1, 1)) == "big 0.5 of 2 GPUs free"
    assert BIG.lacks(Shape(4, 0)) == "big 3 of 8 CPUs free"
    assert BIG.lacks(Shape(1, 0, 600)) == "big 400 of 1000 MiB free"
    assert SMALL.lacks(Shape(1, 0, 0, "H100")) == "small is of another kind"
