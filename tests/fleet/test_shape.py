"""What fits on which node, counted by hand."""

from __future__ import annotations

import pytest

from sparsefleet.fleet.shape import Amount, Node, Shape

BIG = Node("b", "big", Amount(8, 2, 1000), Amount(3, 0.5, 400), ("H100",), {"zone": "a"})
SMALL = Node("s", "small", Amount(2, 0, 500), Amount(2, 0, 500))


@pytest.mark.parametrize(
    ("resources", "of_all", "one_more"),
    [
        ({"cpus": 1}, 8, True),
        ({"cpus": 4}, 2, False),
        ({"cpus": 1, "gpus": 0.25}, 8, True),
        ({"cpus": 1, "gpus": 0.6}, 2, False),
        ({"cpus": 1, "gpus": 1}, 2, False),
        ({"cpus": 1, "gpus": 2}, 1, False),
        ({"cpus": 1, "gpus": 3}, 0, False),
        ({"cpus": 1, "memory_mib": 300}, 3, True),
        ({"cpus": 1, "memory_mib": 500}, 2, False),
        ({"cpus": 1, "accelerator": "H100", "labels": {"zone": "a"}}, 8, True),
        ({"cpus": 1, "accelerator": "A100"}, 0, False),
        ({"cpus": 1, "labels": {"zone": "b"}}, 0, False),
        ({"cpus": 9}, 0, False),
    ],
)
def test_small_trials_pack_until_one_thing_is_used_up(resources: dict[str, object], of_all: int, one_more: bool) -> None:
    shape = Shape.of(resources)
    assert (BIG.fits(shape), BIG.has_room(shape)) == (of_all, one_more)


@pytest.mark.parametrize(("share", "n"), [(0.1, 10), (0.3, 3), (0.5, 2), (0.6, 1), (1 / 3, 3)])
def test_no_trial_has_parts_of_two_devices(share: float, n: int) -> None:
    assert Amount(64, 1, 0).holds(Shape(1, share)) == n
    assert Amount(64, 4, 0).holds(Shape(1, share)) == 4 * n


@pytest.mark.parametrize(("free", "sure"), [(0.8, False), (1.0, True), (1.5, True)])
def test_what_is_free_of_two_devices_may_be_a_part_of_each(free: float, sure: bool) -> None:
    node = Node("n", "two", Amount(8, 2, 0), Amount(8, free, 0))
    assert node.has_room(Shape(1, 0.5)) is sure
    assert node.lacks(Shape(1, 0.5)) == ("two has room" if sure else "two 0.8 of 2 GPUs free, perhaps in parts")
    assert not node.has_room(Shape(1, 1))


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
