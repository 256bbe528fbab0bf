"""Checks for pruners that score a whole model, on a small network with the core's own calibration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsefleet.plugin import Pruner
from sparsefleet.testing.expect import expect
from sparsefleet.testing.network import SmallNetwork, small_network
from sparsefleet.testing.samples import disturb_global_seeds
from sparsefleet.trial.calibrate import score_whole_model


def _scores(plugin: Pruner, network: SmallNetwork) -> dict[str, Tensor]:
    """Of every layer; nothing is pruned in between."""
    return {name: score for only in network.groups(plugin) for name, score in score_whole_model(plugin, network.calibration(only)).items()}


def scores_every_layer(plugin: Pruner) -> None:
    """``score_all`` returns one floating and finite score per connection for every layer, also where weights of a unit, or its inputs, are 0."""
    for network, mend in (
        (small_network(), "guard divisions by zero"),
        (small_network(dead=True), "units whose weights or inputs are all 0 have sums and norms of 0: clamp(min=tiny) what you divide by"),
    ):
        for only in network.groups(plugin):
            calibration = network.calibration(only)
            scores = score_whole_model(plugin, calibration)
            expect(
                scores.keys() == calibration.layers.keys(), f"layers {list(calibration.layers)}", list(scores), "score calibration.layers"
            )
            for name, conn in calibration.layers.items():
                _check_scores(scores[name], name, conn.nnz, mend)


def _check_scores(score: Tensor, name: str, nnz: int, mend: str) -> None:
    got = f"{score.dtype} {tuple(score.shape)}"
    ok = score.shape == (nnz,) and score.is_floating_point()
    expect(ok, f"floating scores of shape ({nnz},) for layer {name!r}", got, "score the stored connections only")
    expect(bool(torch.isfinite(score).all()), f"finite scores for layer {name!r}", "NaN or infinity", mend)


def asks_for_examples(plugin: Pruner) -> None:
    """``calibration_examples`` is a whole number of at least 1."""
    n = plugin.calibration_examples(4)
    expect(isinstance(n, int) and n >= 1, "a number of examples, at least 1", repr(n), "return how many, e.g. 128")


def leaves_the_model_alone(plugin: Pruner) -> None:
    """Weights, buffers, gradients, modes, batches and connections are after ``score_all`` what they were before."""
    network = small_network()
    for only in network.groups(plugin):
        calibration = network.calibration(only)
        before, modes = network.tensors(), [part.training for part in network.module.modules()]
        weights = {name: conn.weight.clone() for name, conn in calibration.layers.items()}
        score_whole_model(plugin, calibration)
        touched = [name for name, value in network.tensors().items() if not torch.equal(value, before[name])]
        touched += [f"connections of {name}" for name, conn in calibration.layers.items() if not torch.equal(conn.weight, weights[name])]
        mend = "call calibration.forward(weights, x) with copies: conn.weight.clone(); batch norms then keep nothing either"
        expect(not touched, "an unchanged network", f"changed: {', '.join(touched)}", mend)
        left = [name for name, parameter in network.module.named_parameters() if parameter.grad is not None]
        expect(not left, "no gradients left behind", f"at {', '.join(left)}", "use torch.autograd.grad, not loss.backward()")
        same = modes == [part.training for part in network.module.modules()]
        expect(same, "modules in the mode that they were in", "others", "leave train() and eval() to calibration.forward")


def is_deterministic(plugin: Pruner) -> None:
    """Same network and batches, same scores, whatever the global generators do."""
    seen = []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(_scores(plugin, small_network()))
    same = all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    expect(same, "equal scores in two calls", "they differ", "draw from conn.rng of calibration.layers, never from a global generator")


def does_not_depend_on_order(plugin: Pruner) -> None:
    """With the hidden units in reverse order the network computes the same, and the scores move with their connections."""
    networks = small_network(), small_network(reverse_hidden=True)
    scores = [_scores(plugin, network) for network in networks]
    for i, name in enumerate(networks[0].sparse):
        dense = []
        for network, score in zip(networks, scores, strict=True):
            module = network.sparse[name]
            values = torch.zeros(module.matrix_shape, dtype=torch.float64)
            values.view(-1)[module.flat_sites()] = score[name].double()
            dense.append(values)
        turned = dense[1].flip(0) if i == 0 else dense[1].flip(1) if i == 1 else dense[1]
        close = torch.allclose(dense[0], turned, rtol=1e-8, atol=1e-10 * float(dense[0].abs().max()))
        mend = "do not use a connection's position as an importance; random scores: conn.rng.at(conn.flat)"
        expect(close or _draws(plugin), f"scores of layer {name!r} that move with their connections", "others", mend)


def _draws(plugin: Pruner) -> bool:
    """True if the scores are drawn: another stream gives others."""
    networks = small_network(), small_network()
    networks[1].topology.seed = 1
    first, second = (_scores(plugin, network) for network in networks)
    return any(not torch.equal(first[name], second[name]) for name in first)


def prunes_to_the_count(plugin: Pruner) -> None:
    """All its rounds together leave exactly the connections that were asked, over all layers, with at least one in each."""
    for distribution in ("uniform",) if plugin.sequential else ("uniform", "global"):
        network = small_network()
        topology, asked = network.topology, 0.125
        now = topology.nnz / topology.n_sites
        for i in range(1, plugin.rounds + 1):
            density = asked if i == plugin.rounds else now * (asked / now) ** (i / plugin.rounds)
            for only in network.groups(plugin):
                scores = score_whole_model(plugin, network.calibration(only))
                topology.prune(scores, density, distribution=distribution, per_row=plugin.per_row, only=only)  # type: ignore[arg-type]
        left = [module.nnz for module in network.sparse.values()]
        wanted = round(asked * topology.n_sites)
        mend = "return finite scores for every layer; rounds = 1 unless the scores are taken anew at each"
        expect(sum(left) == wanted and min(left) > 0, f"{wanted} connections, some in every layer", f"{left}", mend)
        expect(_finite(network.module), "a network that still computes", "NaN or infinity in its weights", mend)


def _finite(module: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())


CHECKS = (
    scores_every_layer,
    asks_for_examples,
    leaves_the_model_alone,
    is_deterministic,
    does_not_depend_on_order,
    prunes_to_the_count,
)
