"""MT-09: errors of 1e-4 to 1 of the largest value, planted in one element of a layer's output or of one of its gradients; and honest layers.

Everything goes through ``check_network``, as before every timing. A planted error counts where it is more than ten times the tolerance that the
check itself used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from sparsefleet_plugins.layers.csr import Csr
from sparsefleet_plugins.layers.masked import Masked
from torch import Tensor, nn

from benchmarks.figures import Figure, Run
from sparsefleet.connections import Connections
from sparsefleet.measure.correctness import Correctness, check_network
from sparsefleet.nn.module import SparseModule
from sparsefleet.rng import Rng

LAYERS = {"csr": Csr, "masked": Masked}
PLACES = ("output", "gradient by input", "gradient by weights", "gradient by bias")
SIZES = (*(1.01e-4 * 10 ** (k / 3) for k in range(12)), 1.0)
"""Of the largest value; three per decade."""


def figures(run: Run) -> list[Figure]:
    """Planted errors that were caught, and honest layers that were not let pass."""
    torch.set_num_threads(1)  # layers this small
    missed, n_planted, below = [], 0, 0
    for seed in range(run.pick(5, 1)):
        for name in LAYERS:
            for place in PLACES:
                for size in SIZES:
                    found = planted(name, seed, place, size)
                    if size <= 10 * found.tol:
                        below += 1
                        continue
                    n_planted += 1
                    if found.ok:
                        missed.append({"layer": name, "seed": seed, "place": place, "size": size})
        run.say(f"planted: {n_planted}, missed: {len(missed)}")
    alarms, n_honest = [], run.pick(1000, 40)
    for seed in range(n_honest):
        name = ("csr", "masked")[seed % 2]
        honest = check(sparse_layer(name, seed), seed)
        if not honest.ok:
            alarms.append({"layer": name, "seed": seed, "reason": honest.reason})
        if seed and seed % 250 == 0:
            run.say(f"honest: {seed}, alarms: {len(alarms)}")
    run.keep({"missed": missed, "alarms": alarms})
    caught = 100 * (n_planted - len(missed)) / n_planted
    note = f"{n_planted} errors in {', '.join(PLACES)} of csr and masked layers; {below} more were below ten tolerances"
    return [
        Figure("planted errors of more than ten tolerances: caught", "%", caught, target=100.0, note=run.note(note)),
        Figure("honest layers refused", "layers", len(alarms), target=0, at_least=False, note=run.note(f"of {n_honest}")),
    ]


def sparse_layer(name: str, seed: int) -> SparseModule:
    """A layer of random shape, density and weights."""
    draw, rng = random.Random(seed), Rng(seed, "gate")
    n_in, n_out = draw.randint(5, 300), draw.randint(5, 300)
    nnz = max(4, round(n_in * n_out * 10 ** draw.uniform(-2, -0.3)))
    flat = rng.distinct(min(nnz, n_in * n_out), n_in * n_out)
    weight = rng.normal(flat.numel()).float() * 10 ** draw.uniform(-3, 3)
    conn = Connections("layer", (n_out, n_in), flat // n_in, flat % n_in, weight)
    module = LAYERS[name]().build(nn.Linear(n_in, n_out, device="meta"), conn, rng.normal(n_out).float())
    assert isinstance(module, SparseModule)
    return module


def check(module: SparseModule, seed: int) -> Correctness:
    """What the gate says of ``module`` with a norm before and a dense layer behind it."""
    n_out, n_in = module.matrix_shape
    network = nn.Sequential(nn.LayerNorm(n_in), module, nn.ReLU(), nn.Linear(n_out, 5))
    inputs = [torch.randn(random.Random(seed).choice([1, 8, 32]), n_in, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    return check_network(network, inputs, precision="fp32", gradients=True, key=str(seed))


def planted(name: str, seed: int, place: str, size: float) -> Correctness:
    """What the gate says of a layer with one wrong element."""
    module = sparse_layer(name, seed)
    wrong = _one_wrong(size, random.Random(seed))
    if place == "output":
        module.register_forward_hook(lambda _module, _args, y: y + wrong(y.detach()))
    elif place == "gradient by input":
        module.register_forward_pre_hook(lambda _module, args: (_WrongGradient.apply(args[0], wrong),))
    elif place == "gradient by bias":
        assert isinstance(module.bias, Tensor)
        module.bias.register_hook(lambda grad: grad + wrong(grad))
    else:
        sites = module.flat_sites() if module.weight_parameter.numel() != module.nnz else None  # absent sites have no gradient to be wrong
        module.weight_parameter.register_hook(lambda grad: grad + wrong(grad, sites))
    return check(module, seed)


def _one_wrong(size: float, draw: random.Random) -> Callable[..., Tensor]:
    """Gives zeros like a tensor, with ``size`` times its largest value in one element (of those at ``sites``)."""
    where = draw.random()

    def wrong(value: Tensor, sites: Tensor | None = None) -> Tensor:
        bump = torch.zeros_like(value, memory_format=torch.contiguous_format).view(-1)
        among = bump.numel() if sites is None else sites.numel()
        place = int(where * among)
        values = value.reshape(-1) if sites is None else value.reshape(-1)[sites]
        bump[place if sites is None else int(sites[place])] = size * float(values.abs().max())
        return bump.view(value.shape)

    return wrong


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.wrong = wrong
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad + ctx.wrong(grad), None
