"""Estimates come from the most similar trials that have finished."""

from __future__ import annotations

import pytest

from sparsefleet.durations import Durations, kind_of


def kind(seed: int, *, arm: str = "sparse", layer: str = "csr", epochs: int = 1, lr: float = 0.1) -> tuple[str, ...]:
    spec = {
        "dataset": {"name": "d"},
        "model": {"name": "m"},
        "layer": {"name": layer},
        "optimizer": {"lr": lr},
        "seed": seed,
        "start": None,
    }
    return kind_of({**spec, "train": {"epochs": epochs, "batch_size": 32}}, arm)


def test_the_most_similar_group_decides() -> None:
    known = Durations()
    assert known.of(kind(0)) is known.spread is known.total([kind(0)]) is None
    known.add(kind(0), 10.0)
    known.add(kind(1), 20.0)
    known.add(kind(0, arm="dense", layer="dense"), 2.0)
    assert known.of(kind(7)) == 15.0  # other seeds of the row
    assert known.of(kind(7, lr=0.5)) == 15.0  # the same work
    assert known.of(kind(7, epochs=9)) == 15.0  # at least the same arm and layer
    assert known.of(kind(7, arm="dense", layer="dense", lr=0.3)) == 2.0
    assert known.of(kind(7, arm="small-dense", layer="dense")) == pytest.approx(32.0 / 3)  # nothing alike: all of them
    assert known.total([kind(5), kind(6, arm="dense", layer="dense")]) == 17.0
    assert known.spread == pytest.approx(50**0.5 / 15)
