"""Correctness of a compact network: against the whole network it was, masked, in float64.

Its layers hold every site they have, so that looking at them one by one says nothing. What could be wrong is which units, biases, norm entries and
columns went. So the connections and all else that is left go back to the places they had in the whole network, zeros stand elsewhere, and the two are
compared: outputs as the network computes them, outputs and gradients in float64, where no ReLU falls on another side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsefleet.measure.correctness import FLOOR, Correctness, relative_error
from sparsefleet.registry import Registry
from sparsefleet.rng import Rng
from sparsefleet.trial.build import Network, build_network
from sparsefleet.trial.spec import TrialSpec

EXACT = 1e-9
"""Allowed between both in float64."""


def check_compact(found: Correctness, network: Network, inputs: Sequence[Tensor], spec: TrialSpec, registry: Registry, key: str) -> None:
    """Takes the comparison of a compact network with its masked float64 reference into ``found``.

    Args:
        network: in eval mode.
        inputs: batches for the whole network.
        key: seeds the gradient by the output.
    """
    reference = masked_whole(network, spec, registry, "fp64")
    alike = masked_whole(network, spec, registry, spec.train.precision)
    exact = copy.deepcopy(network.module).double()
    found.layers += len(network.sparse)
    for x in inputs:
        wide = x.double() if x.is_floating_point() else x
        with torch.no_grad():
            own, same = network.module(x), alike.module(x)
        with torch.set_grad_enabled(found.backward):
            wanted, got = reference.module(wide), exact(wide)
        errors = relative_error(own, wanted.detach()), relative_error(same, wanted.detach())
        found.add("the compact network against the masked one", *errors, FLOOR[spec.train.precision])
        found.add("the compact network against the masked one in float64", relative_error(got.detach(), wanted.detach()), 0.0, EXACT)
        if not found.backward:
            continue
        up = Rng(key, "compact").normal(wanted.numel(), wanted.device).view(wanted.shape)
        gradients = _gradients(exact, got, up)
        for name, right in _gradients_of_whole(reference, wanted, up, network).items():
            found.add(f"gradient by {name} of the compact network in float64", relative_error(gradients[name], right), 0.0, EXACT)


def masked_whole(network: Network, spec: TrialSpec, registry: Registry, precision: str) -> Network:
    """The masked network whose units and connections ``network`` has, in eval mode."""
    train = spec.train.model_copy(update={"precision": precision})
    device = str(next(network.module.parameters()).device)
    sites = {name: part.flat_sites() for name, part in network.sparse.items()}
    whole = build_network(spec.model_copy(update={"train": train}), registry=registry, device=device, sites=sites, storage="masked")
    own = network.module.state_dict()
    with torch.no_grad():
        for name, part in network.sparse.items():
            module = whole.sparse[name]
            module.write_values(part.values().to(module.values()))
            own.pop(f"{name}.weight")
            bias = own.pop(f"{name}.bias", None)
            if bias is not None:
                _put(module.bias, bias, network.places.get(f"{name}.bias"))  # type: ignore[arg-type]
        held = whole.module.state_dict(keep_vars=True)
        for key, value in own.items():
            _put(held[key], value, network.places.get(key))
    whole.module.eval()
    return whole


def _put(tensor: Tensor, values: Tensor, places: Tensor | None) -> None:
    """``values`` at their places, zeros elsewhere."""
    if places is None:
        tensor.copy_(values)
        return
    tensor.zero_()
    tensor.view(-1)[places.to(tensor.device)] = values.reshape(-1).to(tensor.dtype)


def _gradients(module: nn.Module, output: Tensor, up: Tensor) -> dict[str, Tensor]:
    """By name, flat; none of a parameter that takes no part."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(output, list(named.values()), up, allow_unused=True, retain_graph=True)
    return {name: grad.reshape(-1) for name, grad in zip(named, found, strict=True) if grad is not None}


def _gradients_of_whole(whole: Network, output: Tensor, up: Tensor, compact: Network) -> dict[str, Tensor]:
    """By the parameter's name in the compact network, at the places that it has left."""
    theirs = {id(module.weight_parameter): (name, "weight") for name, module in whole.sparse.items()}
    theirs |= {id(getattr(module, "bias", None)): (name, "bias") for name, module in whole.sparse.items()}
    gradients, found = _gradients(whole.module, output, up), {}
    for key, parameter in whole.module.named_parameters():
        name = ".".join(theirs[id(parameter)]) if id(parameter) in theirs else key
        if key in gradients:
            places = compact.places.get(name)
            found[name] = gradients[key] if places is None else gradients[key][places.to(gradients[key].device)]
    return found
