"""Lottery tickets (arXiv 1803.03635, 1912.05671, 2003.02389): each level prunes what the level before has come to, and trains it again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsefleet.errors import UserError
from sparsefleet.nn.module import SparseModule
from sparsefleet.trial import files
from sparsefleet.trial.build import Network, load_network
from sparsefleet.trial.pruning import prune_to
from sparsefleet.trial.spec import TrialSpec
from sparsefleet.trial.start import delivered

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training


def draw_ticket(training: Training) -> None:
    """Prunes what the level before has come to, and takes the survivors back to what they are now.

    A level that rewinds weights has trained the dense network up to this step, with the data, the learning rates and the draws of the first
    level, so that its weights, optimizer slots and statistics are those of that step to the last bit; no trial stores them for it.

    Raises:
        UserError: the trial before is of another network.
    """
    spec, request, network = training.spec, training.request, training.network
    rewind = spec.method.rewind
    assert rewind is not None
    folder = delivered(request)
    earlier = TrialSpec.model_validate(json.loads((folder / files.SPEC).read_text()))
    masks = folder if (folder / files.MANIFEST).is_file() else None
    before = load_network(earlier, folder / files.MODEL, masks, registry=training.registry, device=request.device)
    here = {name: value.clone() for name, value in _tensors(network.module).items()}
    for name, module in network.sparse.items():
        live = _flat_of(before.module.get_submodule(name))
        if live is not None:
            keep = torch.zeros(module.matrix_shape[0] * module.matrix_shape[1], dtype=torch.bool, device=live.device)
            keep[live] = True
            training.topology.change(name, keep[module.flat_sites()], live.new_empty((2, 0)))
    _carry(before, network)
    training.optimizer.zero_grad(set_to_none=True)  # they are those of other weights
    prune_to(training, spec.density)
    if rewind.what == "weights":
        with torch.no_grad():
            for name, value in _tensors(network.module).items():
                value.copy_(here[name])
        training.topology.enforce()


def _flat_of(module: nn.Module) -> Tensor | None:
    return module.flat_sites() if isinstance(module, SparseModule) else None


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer but the masks."""
    found = dict(network.named_parameters()) | dict(network.named_buffers())
    return {name: value.detach() for name, value in found.items() if value.dtype != torch.bool}


def _carry(before: Network, network: Network) -> None:
    """Weights, biases and buffers of a trained network, whatever its layers are stored as."""
    theirs = dict(before.module.named_parameters()) | dict(before.module.named_buffers())
    sparse = tuple(f"{name}." for name in network.sparse)
    try:
        with torch.no_grad():
            for name, module in network.sparse.items():
                source = before.module.get_submodule(name)
                values = source.values() if isinstance(source, SparseModule) else source.get_parameter("weight").reshape(-1)
                module.write_values(values.to(module.values()))
                bias = getattr(module, "bias", None)
                if bias is not None:
                    bias.copy_(getattr(source, "bias"))  # noqa: B009  a Tensor, which nn.Module does not declare
            for name, value in (*network.module.named_parameters(), *network.module.named_buffers()):
                if not name.startswith(sparse):
                    value.copy_(theirs[name])
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError("the network to start from does not fit this model", cause=str(error)) from error
