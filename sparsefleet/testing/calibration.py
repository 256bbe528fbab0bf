"""The core's calibration of layers that an author makes, for tests of ``score_all`` worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, arange, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import UserError
from sparsefleet.nn.masked import MaskedLinear
from sparsefleet.nn.module import SparseModule
from sparsefleet.plugin import Calibration, DataInfo
from sparsefleet.rng import Rng
from sparsefleet.trial.calibrate import NetworkCalibration

_EXAMPLES = 8


def calibration_of(
    layers: Mapping[str, Connections],
    *,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    input_norms: Mapping[str, Tensor] | None = None,
) -> Calibration:
    """The core's calibration of a network of ``layers``, one after another, without biases, relu between them.

    Args:
        layers: by name, from input to output; each has as many inputs as the one before it has outputs.
        batches: ``(x, y)`` each, ``x`` of shape ``(n, n_in)`` and ``y`` int64 classes; default: eight normal examples, the same at every call.
        input_norms: ``(n_in,)`` by layer, what ``input_norms()`` answers; default: the norms that the batches give.

    Raises:
        UserError: the layers do not follow one another, or a norm is missing or of another shape.
    """
    if not layers:
        raise UserError("a calibration of no layers", fix='calibration_of({"fc": layer_of((2, 3), 6)})')
    for (before, first), (after, second) in pairwise(layers.items()):
        if first.n_out != second.n_in:
            raise UserError(f"layer {before!r} has {first.n_out} outputs, and layer {after!r} after it {second.n_in} inputs")
    for name, conn in layers.items():
        norm = conn.weight.new_empty(conn.n_in) if input_norms is None else input_norms.get(name)
        if norm is None or norm.shape != (conn.n_in,):
            raise UserError(
                f"layer {name!r} needs input norms of shape ({conn.n_in},)", fix=f'input_norms={{"{name}": torch.ones({conn.n_in})}}'
            )
    sparse: dict[str, SparseModule] = {}
    for name, conn in layers.items():
        template = nn.Linear(conn.n_in, conn.n_out, bias=False, device="meta")
        sparse[name] = MaskedLinear.from_connections(conn, None, template=template)
    parts = [part for module in sparse.values() for part in (module, nn.ReLU())]
    first, last = next(iter(layers.values())), list(layers.values())[-1]
    if batches is None:
        x = Rng("examples").normal(_EXAMPLES * first.n_in).view(_EXAMPLES, -1).to(first.weight.dtype)
        batches = [(x, arange(_EXAMPLES) % last.n_out)]
    info = DataInfo("classification", (first.n_in,), last.n_out)
    made = _OfLayers(nn.Sequential(*parts[:-1]), sparse, layers, batches, info)
    made.norms = input_norms
    return made


class _OfLayers(NetworkCalibration):
    """Answers the norms that are given, if any are."""

    norms: Mapping[str, Tensor] | None = None

    def input_norms(self) -> Mapping[str, Tensor]:
        return super().input_norms() if self.norms is None else self.norms
