"""Checks of a layer in training: only its connections learn, optimizers keep hold of them, and a resumed training gives the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.nn.module import SparseModule, remap_sites
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Layer
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect
from sparsefleet.testing.layer_case import (
    NNZ,
    SHAPE,
    case_of,
    compare,
    computing,
    connections_for,
    measured_pass,
    reference_pass,
    template_of,
)

Optimizers = dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]
_OPTIMIZERS: Optimizers = {
    "SGD with momentum and weight decay": lambda ps: torch.optim.SGD(ps, lr=0.02, momentum=0.9, weight_decay=0.1),
    "Adam": lambda ps: torch.optim.Adam(ps, lr=0.02),
    "AdamW with weight decay": lambda ps: torch.optim.AdamW(ps, lr=0.02, weight_decay=0.1),
}


def rewires_in_place(plugin: Layer) -> None:
    """After ``set_topology`` it computes with the new connections, in the same Parameter, and optimizer slots follow."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    parameter = module.weight_parameter
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(x).backward(up)
    optimizer.step()
    module.enforce()
    keep, new = _moved(conn)
    remap = remap_sites(module.flat_sites(), keep, new[0] * conn.n_in + new[1], regrown_are_kept=False)
    slot = optimizer.state[parameter]["momentum_buffer"]
    values = remap.gather(module.values())
    before = _by_connection(module, slot)
    moved = module.remap_slot(slot, remap)
    parameter.grad = None
    module.set_topology(remap, values)
    expect(module.weight_parameter is parameter, "the same Parameter object", "another one", "write into it; optimizers hold on to it")
    wrong = int((_by_connection(module, moved) != remap.gather(before)).sum())
    expect(wrong == 0, "slots that stay with kept connections and are zero at grown ones", f"{wrong} wrong", "see SparseModule.remap_slot")
    after = Connections("layer", conn.shape, remap.flat // conn.n_in, remap.flat % conn.n_in, values)
    module.zero_grad()
    stepped = bias - 0.1 * up.sum(0)  # SGD's first step
    compare(reference_pass(computing(module, after), stepped, x, up), measured_pass(module, x, up), torch.float64)


def _by_connection(module: SparseModule, slot: Tensor) -> Tensor:
    """``(nnz,)``: a slot, read through the module as if it were the weights."""
    parameter = module.weight_parameter.detach()
    weights = parameter.clone()
    parameter.copy_(slot)
    values = module.values().clone()
    parameter.copy_(weights)
    return values


def _moved(conn: Connections) -> tuple[Tensor, Tensor]:
    """Two thirds of the connections, or of the tiles, stay, and as many others grow at random: ``(nnz,)`` bool, ``(2, k)`` sites."""
    tile = conn.row // conn.tile * -(-conn.n_in // conn.tile) + conn.col // conn.tile
    rank = torch.unique(tile, return_inverse=True)[1]  # among the tiles, or among the connections where a tile is one site
    keep = rank % 3 != 0
    expect(not bool(keep.all()), "a layer with connections to drop", f"all {conn.nnz} kept", "let the topology hold at least one")
    return keep, conn.select(keep).random_absent(int((~keep).sum()), Rng("rewire"))


class _DenseReference:
    """A dense float64 weight of which only the connections learn: gradient, weight and slots are zero elsewhere after every step."""

    def __init__(self, conn: Connections, bias: Tensor, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        self.mask = torch.zeros(conn.shape, dtype=torch.bool)
        self.mask[conn.row, conn.col] = True
        self.weight = nn.Parameter(torch.zeros(conn.shape, dtype=torch.float64))
        self.weight.data[conn.row, conn.col] = conn.weight.double()
        self.bias = nn.Parameter(bias.double().clone())
        self.optimizer = make([self.weight, self.bias])

    def step(self, x: Tensor, up: Tensor) -> None:
        self.optimizer.zero_grad()
        (x @ self.weight.T + self.bias).backward(up)  # type: ignore[no-untyped-call]
        assert self.weight.grad is not None
        self.weight.grad *= self.mask
        self.optimizer.step()
        self.weight.data *= self.mask

    def change(self, keep: Tensor, new: Tensor, conn: Connections) -> None:
        fresh = torch.zeros_like(self.mask)
        fresh[conn.row[~keep], conn.col[~keep]] = True
        self.mask &= ~fresh
        fresh[new[0], new[1]] = True
        self.mask[new[0], new[1]] = True
        for slot in [self.weight.data, *self.optimizer.state[self.weight].values()]:
            if slot.shape == fresh.shape:
                slot[fresh] = 0


def trains_only_its_connections(plugin: Layer) -> None:
    """Under momentum and weight decay, before and after a change of sites, it learns what a dense weight with zeros elsewhere learns.

    Afterwards its outputs are those of the matrix that ``connections()`` tells: nothing is hidden, and no absent weight has come back.
    """
    if plugin.topology == "all":
        return
    for name, make in _OPTIMIZERS.items():
        conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
        module = plugin.build(template_of(SHAPE), conn, bias)
        rounds = module.value_bits < 64
        optimizer = make(list(module.parameters()))
        topology, reference = Topology({"layer": module}, optimizer, seed=0), _DenseReference(conn, bias, make)
        parameters = [id(parameter) for parameter in module.parameters()]
        for step in range(8):
            if step == 4:
                keep, new = _moved(module.connections())
                reference.change(keep, new, module.connections())
                topology.change("layer", keep, new)
            module(x).backward(up)
            optimizer.step()
            optimizer.zero_grad()
            topology.enforce()
            reference.step(x, up)
            told = module.connections()
            wanted = torch.nonzero(reference.mask.view(-1)).flatten()
            expect(
                torch.equal(told.flat, wanted),
                f"the sites that it was given, after step {step + 1} of {name}",
                "others",
                "training moves none",
            )
            dense = torch.zeros(SHAPE, dtype=torch.float64)
            dense[told.row, told.col] = module.multiplied()
            bias_now = module.bias.detach() if isinstance(module.bias, Tensor) else torch.zeros(SHAPE[0])
            error = float((module(x).detach() - x @ dense.T - bias_now).abs().max())
            expect(
                error < 1e-10,
                f"outputs of the connections it tells, after step {step + 1} of {name}",
                f"off by {error:.3g}: weights at absent sites take part",
                "zero absent weights in enforce(), or mask them in forward; gradients, momentum and weight decay must not bring them back",
            )
            if rounds:
                continue  # it learns by its rounded weights
            error = float((told.weight - reference.weight.detach()[told.row, told.col]).abs().max())
            expect(
                error < 1e-9,
                f"weights that a masked dense layer has after step {step + 1} of {name}",
                f"off by {error:.3g}",
                "one Parameter, whose slots remap_slot moves: zero at grown connections, with their connection at kept ones",
            )
        same = parameters == [id(parameter) for parameter in module.parameters()]
        expect(same, "the same Parameter objects after set_topology", "others", "write into the Parameter: parameter.data = …")


def survives_its_state_dict(plugin: Layer) -> None:
    """A checkpoint of one module, loaded into another with the same number of connections, gives the same outputs."""
    conn, bias, x, _ = case_of(plugin, NNZ, torch.float64)
    module = plugin.build(template_of(SHAPE), conn, bias)
    elsewhere = connections_for(plugin, conn.nnz, seed=9)
    other = plugin.build(template_of(SHAPE), elsewhere, torch.zeros_like(bias))
    other.load_state_dict(module.state_dict())
    expect(torch.equal(module(x), other(x)), "equal outputs after load_state_dict", "they differ", "register indices and masks as buffers")


def resumes_to_the_bit(plugin: Layer) -> None:
    """A training that goes on in a new module and a new optimizer, by their state dicts, ends with the same bits."""
    if plugin.topology == "all":
        return
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    make = _OPTIMIZERS["AdamW with weight decay"]
    module = plugin.build(template_of(SHAPE), conn, bias)
    optimizer = make(list(module.parameters()))
    _train(module, optimizer, x, up)
    saved = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    again = plugin.build(template_of(SHAPE), conn, torch.zeros_like(bias))
    its_own = make(list(again.parameters()))
    again.load_state_dict(saved[0])
    its_own.load_state_dict(saved[1])
    _train(module, optimizer, x, up)
    _train(again, its_own, x, up)
    same = torch.equal(module(x), again(x)) and torch.equal(module.values(), again.values())
    expect(
        same, "equal weights and outputs of a resumed training", "others", "register all that changes in training as parameters or buffers"
    )


def _train(module: SparseModule, optimizer: torch.optim.Optimizer, x: Tensor, up: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        module(x).backward(up)
        optimizer.step()
        module.enforce()


def builds_independent_modules(plugin: Layer) -> None:
    """Two modules of the same connections share nothing, and training one changes neither the other nor what it was built from."""
    conn, bias, x, up = case_of(plugin, NNZ, torch.float64)
    weight, given = conn.weight.clone(), bias.clone()
    first, second = (plugin.build(template_of(SHAPE), conn, bias) for _ in range(2))
    before = second(x).detach()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    first(x).backward(up)
    optimizer.step()
    expect(torch.equal(before, second(x)), "the other module as it was", "other outputs", "conn.weight.clone(): copy what you are given")
    same = torch.equal(weight, conn.weight) and torch.equal(given, bias)
    expect(same, "unchanged connections and bias after a step", "others", "conn.weight.clone(): copy what you are given")


CHECKS = (rewires_in_place, trains_only_its_connections, survives_its_state_dict, resumes_to_the_bit, builds_independent_modules)
