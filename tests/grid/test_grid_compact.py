"""What a plan says of pattern neuron and of layer compact, and the arms that stand beside it."""

import pytest
from grid_plugins import walked

from sparsefleet.grid.expand import Skip

ARMS = "[random-static, shuffled-mask, reinit-mask, small-dense]"


@pytest.mark.parametrize(
    ("layer", "method", "reason"),
    [
        ("compact", "{rewirer: set}", "layer=compact removes whole units; it needs a pruner with pattern neuron"),
        ("compact", "{pruner: magnitude, pattern: row}", "layer=compact removes whole units; it needs a pruner with pattern neuron"),
        ("compact", "{pruner: wanda, pattern: neuron}", "wanda compares the weights of one unit; pattern neuron compares units"),
        ("masked", "{pruner: movement, pattern: neuron}", "movement lets connections return; pattern neuron removes units for good"),
        ("compact", "{pruner: movement, pattern: neuron}", "movement lets connections return; pattern neuron removes units for good"),
        ("dense", "{pruner: magnitude, pattern: neuron}", "layer=dense stores every weight; magnitude needs masked or a sparse layer"),
        ("fixed-fan-in", "{pruner: magnitude, pattern: neuron}", "holds topology constant-fan-in, which pattern neuron does not give"),
    ],
)
def test_what_cannot_remove_units_is_skipped_with_the_reason(layer, method, reason):
    skips = [item.reason for item in walked(layer=layer, method=method, control_arms=ARMS) if isinstance(item, Skip)]
    assert skips
    assert reason in skips[0]


def test_the_random_arm_removes_as_many_units_at_random_before_the_first_step():
    items = [
        item
        for item in walked(layer="compact", method="{pruner: snip, distribution: global, pattern: neuron}", control_arms=ARMS)
        if not isinstance(item, Skip)
    ]
    by_arm = {item.arm: item.spec for item in items}
    assert set(by_arm) == {"sparse", "dense", "random-static", "reinit-mask", "small-dense"}  # shuffled, units would be none
    arm = by_arm["random-static"]
    assert (arm.layer.name, arm.method.pruner.name, arm.method.pattern.kind, arm.method.schedule) == ("compact", "random", "neuron", None)
    assert arm.density == by_arm["sparse"].density
