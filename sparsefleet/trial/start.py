"""What a trial takes of the trial that it starts from: weights or connections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.errors import SparsefleetError
from sparsefleet.nn.materialise import draw_connections
from sparsefleet.registry import Registry
from sparsefleet.trial import files
from sparsefleet.trial.build import Network, load_dense_weights
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.spec import PluginRef, TrialSpec
from sparsefleet.trial.tensor_file import read_tensors

if TYPE_CHECKING:
    from sparsefleet.trial.request import TrialRequest


def delivered(request: TrialRequest) -> Path:
    """The folder with the artifacts of the trial that this one starts from.

    Raises:
        SparsefleetError: they were not delivered.
    """
    if request.start is None or not (request.start / files.MODEL).is_file():
        assert request.spec.start is not None
        cause = f"{request.start / files.MODEL} is no regular file" if request.start else ""
        raise SparsefleetError(f"the network of trial {request.spec.start.trial} was not delivered", cause=cause)
    return request.start


def given_sites(request: TrialRequest, registry: Registry) -> dict[str, Tensor] | None:
    """Flat positions per layer, where the trial takes the connections of another, or as many at random; else None."""
    spec = request.spec
    if spec.start is None or spec.start.gives not in ("mask", "shuffled-mask"):
        return None
    masks = load_masks(delivered(request))
    if spec.start.gives == "mask":
        return {name: mask.flat for name, mask in masks.items()}
    layer, anywhere = registry.build("layer", spec.layer), registry.build("connectivity", PluginRef(name="random"))
    device = torch.device("cpu")
    return {
        name: draw_connections(name, mask.shape, mask.flat.numel(), anywhere, spec.seed, device, layer).flat for name, mask in masks.items()
    }


def take_weights(network: Network, request: TrialRequest) -> None:
    """Gives the network the trained weights of the dense twin."""
    load_dense_weights(network, read_tensors(delivered(request) / files.MODEL, request.device))


def first_step(spec: TrialSpec, total_steps: int) -> int:
    """The step that training begins with: a rewound learning rate leaves out what came before."""
    rewind = spec.method.rewind
    return round(rewind.to * total_steps) if rewind and rewind.what == "learning-rate" else 0
