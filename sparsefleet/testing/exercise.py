"""One typical use of a plugin, for checks that ask every family the same question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.plugin import Activation, Connectivity, Dataset, Layer, Model, Plugin, Progress, Pruner, Rewirer
from sparsefleet.rng import Rng
from sparsefleet.testing import layer as layers, model as models
from sparsefleet.testing.layer_case import case_of, template_of
from sparsefleet.testing.network import small_network
from sparsefleet.testing.sample_layer import sample_of
from sparsefleet.testing.samples import layer_of
from sparsefleet.trial.calibrate import score_whole_model

_SHAPE, _NNZ = (12, 20), 60
_DRAWS_FIRST_WEIGHTS = ("activation", "model", "layer")


def exercise(plugin: Plugin) -> list[Tensor]:
    """Uses ``plugin`` once, as a trial does, and returns the tensors that came out, the same at every call.

    A score; one update with its steps; a layer's forward and backward pass; a draw; an activation's passes; a network's outputs; invented
    examples and their augmentation. Nothing where the plugin cannot run here.
    """
    with torch.random.fork_rng(devices=[], enabled=plugin.family in _DRAWS_FIRST_WEIGHTS):
        if plugin.family in _DRAWS_FIRST_WEIGHTS:
            torch.manual_seed(0)
        return _USES[plugin.family](plugin)


def _pruner(plugin: Pruner) -> list[Tensor]:
    if plugin.needs_calibration:
        net = small_network()
        return [score for only in net.groups(plugin) for score in score_whole_model(plugin, net.calibration(only)).values()]
    conn = layer_of(_SHAPE, _NNZ)
    plugin.before_step(conn)
    plugin.on_step(conn, 0.1, Rng("on-step"))
    return [plugin.score_sites(conn) if plugin.revives else plugin.score(conn)]


def _rewirer(plugin: Rewirer) -> list[Tensor]:
    conn = layer_of(_SHAPE, _NNZ)
    conn.state = dict(plugin.initial_state(conn))
    plugin.on_step(conn, 0.1, Rng("on-step"))
    progress = Progress(50, 1000, 50)
    plugin.due(progress)
    plugin.n_peak(conn, progress)
    plugin.redistribute({"layer": conn}, progress)
    keep, new = plugin.update(conn, progress, Rng("update"), conn.nnz)
    return [keep, new, plugin.grown_weight(conn, new, Rng("grown"))]


def _layer(plugin: Layer) -> list[Tensor]:
    if not layers.runs_here(plugin):
        return []
    conn, bias, x, up = case_of(plugin, _NNZ, torch.float32)
    module = plugin.build(template_of(_SHAPE), conn, bias)
    x.requires_grad_()
    output = module(x)
    output.backward(up)
    return [output.detach(), *([] if x.grad is None else [x.grad])]


def _connectivity(plugin: Connectivity) -> list[Tensor]:
    layer, shape = sample = sample_of(plugin)
    return [plugin.draw_for(layer, shape, plugin.nnz_of(layer, shape, sample.n_sites // 4), Rng("draw"))]


def _activation(plugin: Activation) -> list[Tensor]:
    module = plugin.build(40)
    x = Rng("activation").normal(16 * 40).float().view(16, 40).requires_grad_()
    module(x).sum().backward()
    return [module.eval()(x).detach(), *([] if x.grad is None else [x.grad])]


def _model(plugin: Model) -> list[Tensor]:
    data = models.examples(plugin)[0]
    with torch.no_grad():
        return [plugin.build(data, lambda _: nn.ReLU()).eval()(models.inputs(data))]


def _dataset(plugin: Dataset) -> list[Tensor]:
    data = plugin.fake(7)
    return [data.x, data.y, plugin.augment(data.x, Rng("augment"))]


_USES: Mapping[str, Callable[[Any], list[Tensor]]] = {
    "pruner": _pruner,
    "rewirer": _rewirer,
    "layer": _layer,
    "connectivity": _connectivity,
    "activation": _activation,
    "model": _model,
    "dataset": _dataset,
}
