"""A layer that a connectivity accepts: some need widths that are multiples, or know their layers by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from sparsefleet.errors import UserError
from sparsefleet.plugin import Connectivity
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import Nonconforming, problem_text

_MOST = 2**24
"""Connections that a check draws at most: a parameter may settle a count that grows with the layer."""
_SHAPES = ((12, 20), (240, 480), (256, 512))


class Sample(NamedTuple):
    """A layer's name and its ``(n_out, n_in)``."""

    layer: str
    shape: tuple[int, int]

    @property
    def n_sites(self) -> int:
        """Possible connections."""
        return self.shape[0] * self.shape[1]


def sample_of(plugin: Connectivity) -> Sample:
    """The layer that ``plugin.sample_layer`` names, or else one of a few names and shapes.

    Raises:
        Nonconforming: the plugin refuses them all.
    """
    for found in _candidates(plugin):
        if _refusal(plugin, found) is None:
            return found
    named = Sample(*plugin.sample_layer())
    mend = "name one that it accepts: def sample_layer(self): return 'fc1', (64, 128), that is (n_out, n_in)"
    raise Nonconforming(
        problem_text(f"connections for {named.layer!r} of {named.shape[0]} x {named.shape[1]}", _refusal(plugin, named), mend)
    )


def _refusal(plugin: Connectivity, sample: Sample) -> str | None:
    """How ``plugin`` refuses a layer, which may be one that ``check_layers`` would not have let through; None: it draws connections for it."""
    try:
        nnz = plugin.nnz_of(sample.layer, sample.shape, sample.n_sites // 4)
        plugin.draw_for(sample.layer, sample.shape, nnz, Rng("sample"))
    except UserError as error:
        return f"refused: {error}"
    except KeyError as error:
        return f"KeyError: {error}"
    return None


def draw_near(plugin: Connectivity, sample: Sample, shape: tuple[int, int], asked: int, rng: Rng) -> tuple[tuple[int, int], Tensor] | None:
    """A draw for ``shape``, or for the largest multiple of the sample's within it, with the shape it is for; None if both are refused.

    None too where a parameter settles a count above 2**24, which would take gigabytes.
    """
    (n_out, n_in), (high, wide) = shape, sample.shape
    for near in (shape, (n_out // high * high, n_in // wide * wide)):
        try:
            nnz = plugin.nnz_of(sample.layer, near, asked)
            return (near, plugin.draw_for(sample.layer, near, nnz, rng)) if nnz <= _MOST else None
        except UserError:
            continue
    return None


def _candidates(plugin: Connectivity) -> Iterator[Sample]:
    named = Sample(*plugin.sample_layer())
    yield named
    for layer in dict.fromkeys((named.layer, *_texts(plugin.model_dump()))):
        for shape in _SHAPES:
            yield Sample(layer, shape)


def _texts(value: Any) -> Iterator[str]:
    """The texts among hyper-parameters, which may name layers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
