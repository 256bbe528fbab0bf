"""MT-06: what the product counts against loops over every connection, row and byte of tiny networks.

The loops share no formula with ``sparsefleet.measure.cost``: they walk over the stored arrays, the activations that a forward pass shows and
the slots that a real optimizer keeps, and add one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from benchmarks.figures import Figure, Run
from sparsefleet.connections import Connections
from sparsefleet.measure.cost import cost
from sparsefleet.measure.work import Cost
from sparsefleet.nn.module import SparseModule
from sparsefleet.registry import Registry
from sparsefleet.trial.spec import PluginRef

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "rmsprop-momentum": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
}
Counted = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A tiny network on a batch."""

    network: nn.Module
    x: Tensor
    op: str
    optimizer: str

    def counted(self) -> Counted:
        """The product's answer, in the words of ``brute``."""
        found: Cost = cost(self.network, self.x, self.op, self.optimizer, "fp32")  # type: ignore[arg-type]
        return {
            "flops": [layer.flops for layer in found.layers],
            "nnz": [layer.nnz for layer in found.layers],
            "streamed": [layer.dram_bytes for layer in found.layers],
            "gathered": [layer.gather_bytes for layer in found.layers],
            "stored": found.stored_bytes,
            "params": found.params,
            "optimizer": found.optimizer_bytes,
        }


@st.composite
def nets(draw: st.DrawFn) -> Case:
    """A chain of dense, CSR and masked layers of a few units, or a convolution before them."""
    registry, kinds = Registry(), st.sampled_from(["dense", "csr", "masked"])
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    rows, parts, width = draw(st.integers(1, 4)), [], draw(st.integers(1, 6))
    x = torch.randn(rows, width)
    if draw(st.booleans()):
        channels, size = draw(st.integers(1, 2)), draw(st.integers(3, 5))
        x = torch.randn(rows, channels, size, size)
        parts += [_layer(registry, draw(st.sampled_from(["dense", "masked"])), nn.Conv2d(channels, 2, 3, padding=1), draw), nn.Flatten()]
        width = 2 * size * size
    for _ in range(draw(st.integers(1, 3))):
        n_out = draw(st.integers(1, 6))
        parts += [_layer(registry, draw(kinds), nn.Linear(width, n_out, bias=draw(st.booleans())), draw), nn.ReLU()]
        width = n_out
    network = nn.Sequential(*parts)
    return Case(network, x, draw(st.sampled_from(["forward", "step"])), draw(st.sampled_from(sorted(OPTIMIZERS))))


def _layer(registry: Registry, kind: str, template: nn.Module, draw: st.DrawFn) -> nn.Module:
    if kind == "dense":
        return template
    n_out, n_in = template.weight.shape[0], template.weight[0].numel()
    live = torch.rand(n_out * n_in) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    live[draw(st.integers(0, n_out * n_in - 1))] = True
    flat = torch.nonzero(live).flatten()
    conn = Connections("layer", (n_out, n_in), flat // n_in, flat % n_in, torch.randn(flat.numel()))
    layer = registry.build("layer", PluginRef(name=kind))
    bias = None if template.bias is None else template.bias.detach().clone()
    return layer.build(template, conn, bias)


def brute(case: Case) -> Counted:
    """The same figures, one addition at a time."""
    layers = _shown(case)
    found: Counted = {key: [] for key in ("flops", "nnz", "streamed", "gathered")}
    for index, (module, x, y) in enumerate(layers):
        sites = _sites(module)
        gathers = getattr(module, "execution", "dense") == "sparse_csr"
        passes = ["forward"]
        if case.op == "step":
            passes += ["backward"] if gathers else ["grad_weight"] if index == 0 else ["grad_input", "grad_weight"]
        flops = streamed = gathered = 0
        for name in passes:
            products = 2 if name == "backward" and index > 0 else 1
            for _ in sites:
                for _ in _rows(module, y):
                    flops += 2 * products
                    gathered += 4 if gathers else 0
            streamed += _weights(module, name, first=index == 0) + _activations(x, y, name, first=index == 0)
        found["flops"].append(flops)
        found["nnz"].append(_connections(module))
        found["streamed"].append(streamed)
        found["gathered"].append(gathered)
    found["stored"] = sum(len(t.flatten().tolist()) * t.element_size() for t in (*case.network.parameters(), *case.network.buffers()))
    found["params"] = sum(found["nnz"]) + sum(p.numel() for name, p in case.network.named_parameters() if name.endswith("bias"))
    found["optimizer"] = _stepped(case) if case.op == "step" else 0
    return found


def _shown(case: Case) -> list[tuple[nn.Module, Tensor, Tensor]]:
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    value = case.x
    for part in case.network:
        before, value = value, part(value)
        if isinstance(part, (nn.Linear, nn.Conv2d, SparseModule)):
            seen.append((part, before, value))
    return seen


def _sites(module: nn.Module) -> list[tuple[int, int]]:
    """(output, input) of every product that the storage runs."""
    if getattr(module, "execution", "") == "sparse_csr":
        crow, col = module.crow.tolist(), module.col.tolist()
        return [(row, col[at]) for row in range(len(crow) - 1) for at in range(crow[row], crow[row + 1])]
    weight = module.weight.detach()
    return [(row, at) for row in range(weight.shape[0]) for at, _ in enumerate(weight[row].flatten().tolist())]


def _connections(module: nn.Module) -> int:
    if hasattr(module, "mask"):
        return sum(int(alive) for alive in module.mask.flatten().tolist())
    return len(_sites(module))


def _rows(module: nn.Module, y: Tensor) -> list[float]:
    """One entry for each input row that meets the weight: the output of the first unit."""
    spatial = isinstance(module, nn.Conv2d) or y.dim() == 4
    return (y[:, 0] if spatial else y[..., 0]).detach().flatten().tolist()


def _weights(module: nn.Module, name: str, first: bool) -> int:
    """Bytes of weights, indices and masks that one pass touches, from the arrays themselves."""
    if getattr(module, "execution", "") == "sparse_csr":
        index = len(module.col.tolist()) * 4 + len(module.crow.tolist()) * 4
        values = 0
        for _ in module.values_.tolist():
            values += 4 if name == "forward" or first else 8  # backward: read for the input's gradient, and its own gradient written
        return index + values
    touched = 0
    for _ in _sites(module):
        touched += 4 + (1 if hasattr(module, "mask") and name != "grad_weight" else 0)
    return touched


def _activations(x: Tensor, y: Tensor, name: str, first: bool) -> int:
    touched = 0
    for _ in x.detach().flatten().tolist():
        touched += 8 if name == "backward" and not first else 4
    for _ in y.detach().flatten().tolist():
        touched += 4
    return touched


def _stepped(case: Case) -> int:
    """Bytes of one real step: the weight and each slot of its size both ways, the gradient once."""
    parameters = list(case.network.parameters())
    optimizer = OPTIMIZERS[case.optimizer](parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    touched = 0
    for parameter in parameters:
        slots = [s for s in optimizer.state.get(parameter, {}).values() if isinstance(s, Tensor) and s.shape == parameter.shape]
        for _ in parameter.detach().flatten().tolist():
            touched += 4 * (3 + 2 * len(slots))
        parameter.grad = None
    return touched


def figures(run: Run) -> list[Figure]:
    """How many of 500 networks were counted otherwise than by the loops."""
    wrong: list[str] = []
    n_nets, n_seen = run.pick(500, 50), 0

    @settings(max_examples=n_nets, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(nets())
    def compare(case: Case) -> None:
        nonlocal n_seen
        n_seen += 1
        looped, counted = brute(case), case.counted()
        if looped != counted:
            wrong.append(f"{[type(part).__name__ for part in case.network]} {case.op} {case.optimizer}: {looped} against {counted}")

    compare()
    note = run.note(f"{n_seen} networks" + (f"; first: {wrong[0]}" if wrong else ""))
    return [Figure("own counts that differ from the loops'", "networks", len(wrong), target=0, at_least=False, note=note)]
