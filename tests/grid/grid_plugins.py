"""A small catalogue by hand: grids are tested without importing any plugin."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.inputs.nasty import HEAD
from sparsefleet.grid.expand import Point, Skip, walk
from sparsefleet.grid.load import load_text
from sparsefleet.grid.model import Grid
from sparsefleet.registry import Catalog, Entry

GIB = 2**30
REWIRING = {
    "every": {"type": "integer", "minimum": 1, "default": 100},
    "drop_fraction": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.3},
}


def _entry(family: str, name: str, properties: dict[str, Any] | None = None, **facts: Any) -> Entry:
    schema = {"type": "object", "properties": properties or {}, "additionalProperties": False}
    return Entry(family, name, "hand-made", "1.0", f"hand_made.{name}", "0" * 64, schema=schema, facts=facts)


def catalogue() -> Catalog:
    hidden = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "default": [300, 100]}
    norm = {"enum": ["none", "layer"], "default": "none"}
    free = {"topology": "free", "kinds": ["Linear"]}
    return Catalog(
        [
            _entry("dataset", "digits", info={"task": "classification", "input_shape": [64], "n_outputs": 10}),
            _entry("dataset", "mnist", info={"task": "classification", "input_shape": [1, 28, 28], "n_outputs": 10}),
            _entry("model", "mlp", {"hidden": hidden, "norm": norm}),
            _entry("model", "convnet", {"width": {"type": "integer", "minimum": 1, "default": 8}}, kinds=["Linear", "Conv2d"]),
            _entry("model", "rigid", narrows=False),
            _entry(
                "model",
                "words",
                {"prune_embedding": {"type": "boolean", "default": False}},
                kinds=["Linear", "Embedding:prune_embedding=true"],
            ),
            _entry("layer", "dense", topology="all", stores_dense=True, kinds=["Linear", "Conv2d"]),
            _entry("layer", "masked", topology="free", stores_dense=True, kinds=["Linear", "Conv2d"]),
            _entry("layer", "csr", **free),
            _entry("layer", "fixed-fan-in", topology="constant-fan-in", kinds=["Linear"]),
            _entry("layer", "two-four", topology="n:m", kinds=["Linear"], devices=["cuda"]),
            _entry("connectivity", "random"),
            _entry("connectivity", "small-world", {"exponent": {"type": "number", "default": 1.0}}),
            _entry("activation", "relu"),
            _entry(
                "activation",
                "k-winners",
                {"density": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.35}},
                sparse=True,
            ),
            _entry("pruner", "magnitude"),
            _entry("pruner", "random"),
            _entry("rewirer", "static"),
            _entry("rewirer", "set", REWIRING),
            _entry("rewirer", "rigl", REWIRING, needs_absent_grad=True),
            _entry("rewirer", "deep-r", {"alpha": {"type": "number", "minimum": 0, "default": 1e-5}}, needs_plain_sgd=True),
            _entry("rewirer", "snfs", REWIRING, needs_dense=True),
            Entry("?", "wrecked", "bad-dist", "0.1", "bad", "", state="broken", reason="ImportError: no such thing"),
        ]
    )


CATALOGUE = catalogue()


def grid_of(text: str, head: str = HEAD, set_: tuple[str, ...] = ()) -> Grid:
    return load_text(head + text, "g.yaml", set_=set_, catalog=CATALOGUE)


def walked(**keys: str) -> list[Point | Skip]:
    """Every trial and every skip of a small grid of the shipped plugins, with these keys as YAML."""
    from sparsefleet.registry import catalog

    lines = {
        "name": "small",
        "dataset": "digits",
        "model": "{mlp: {hidden: [64]}}",
        "optimizer": "{sgd: {lr: 0.1}}",
        "train": "{epochs: 1}",
        "density": "0.25",
        "seeds": "1",
        **keys,
    }
    text = "".join(f"{key}: {value}\n" for key, value in lines.items())
    return list(walk(load_text(text, "grid.yaml", catalog=catalog()), catalog()))


@contextmanager
def within(cpu_s: float) -> Iterator[None]:
    """Asserts that the block takes less CPU time; what other tests left on the heap is not walked by the collector meanwhile."""
    gc.freeze()
    started = time.process_time()
    try:
        yield
        spent = time.process_time() - started
    finally:
        gc.unfreeze()
    assert spent < cpu_s
