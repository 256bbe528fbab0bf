"""What a grid may ask of a node."""

from __future__ import annotations

import pytest
from grid_plugins import CATALOGUE, HEAD

from sparsefleet.errors import InvalidGrid
from sparsefleet.grid.load import load_text
from sparsefleet.grid.model import Grid


def grid(text: str) -> Grid:
    return load_text(HEAD + text, "grid.yaml", catalog=CATALOGUE)


def test_all_of_it_reaches_the_trials() -> None:
    asked = "resources: {cpus: 4, gpus: 0.25, memory_mib: 16000, accelerator: H100, labels: {zone: a, example.org/rack: '7'}}\n"
    labels = {"zone": "a", "example.org/rack": "7"}
    assert grid(asked).base["resources"] == {"cpus": 4, "gpus": 0.25, "memory_mib": 16000, "accelerator": "H100", "labels": labels}
    assert grid("resources.labels: {zone: b}\n").base["resources"] == {"cpus": 1, "gpus": 0.0, "labels": {"zone": "b"}}


def test_a_grid_that_asks_for_none_of_it_keeps_its_digest() -> None:
    assert grid("").base["resources"] == {"cpus": 1, "gpus": 0.0}
    assert grid("").digest != grid("resources: {memory_mib: 5}\n").digest


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("gpus: 1.5", ["resources.gpus", "a share below 1, or a whole number"]),
        ("memory_mib: 0", ["resources.memory_mib", "greater than or equal to 1"]),
        ("accelerator: '!H100'", ["resources.accelerator", "'!H100'"]),
        ("labels: {zone: 'in(a,b)'}", ["resources.labels.zone", "'in(a,b)'"]),
        ("labels: {zone: 1}", ["resources.labels.zone", "string"]),
        ("labels: {'zo ne': a}", ["resources.labels", "'zo ne'"]),
    ],
)
def test_what_ray_would_take_for_something_else_is_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidGrid) as caught:
        grid(f"resources: {{{text}}}\n")
    assert all(part in str(caught.value) for part in ["grid.yaml:6", *parts])
