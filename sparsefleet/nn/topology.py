"""Every topology change of a network: who goes, who comes, and what becomes of weights, optimizer slots and the method's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsefleet.connections import Connections, check_sites
from sparsefleet.errors import PluginError
from sparsefleet.nn.module import Remap, SparseModule, remap_sites
from sparsefleet.nn.projection import fitted_nnz, fitted_pattern, update_of
from sparsefleet.plugin import Progress, Pruner, Rewirer
from sparsefleet.rng import Rng, key_of, uniform_at
from sparsefleet.sparsity.distribute import distribute, total_nnz
from sparsefleet.sparsity.pattern import keep_by_pattern
from sparsefleet.sparsity.select import keep_best, keep_best_per_row
from sparsefleet.sparsity.vocabulary import Distribution, NOfM, Pattern, Unstructured


@dataclass
class Change:
    """What one update did to one layer.

    Attributes:
        n_peak: the most connections that stood during the update; of a method that redistributes, what stands after it: all layers drop
            before any grows.
    """

    layer: str
    n_dropped: int
    n_grown: int
    nnz: int
    n_peak: int


class Topology:
    """The sparse modules of a network, their optimizer, and the only code that changes their connections.

    Args:
        modules: by qualified name, input to output.
        optimizer: its slots follow every change; None before training.
        seed: all draws are functions of (seed, purpose, layer, step).
        shapes: weight shapes for distributions that look at the kernel; default: the matrix shapes.
        asked: each layer's budget, for rewirers that vary nnz; default: what it has now.
    """

    def __init__(
        self,
        modules: Mapping[str, SparseModule],
        optimizer: torch.optim.Optimizer | None,
        seed: int,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        asked: Mapping[str, int] | None = None,
    ) -> None:
        self.modules = dict(modules)
        self.optimizer = optimizer
        self.seed = seed
        self.on_change: Callable[[str, Remap], None] | None = None
        self.shapes = dict(shapes or {name: module.matrix_shape for name, module in modules.items()})
        self._before_step: RemovableHandle | None = None
        asked = asked or {name: module.nnz for name, module in modules.items()}
        self.asked = {name: fitted_nnz(asked[name], module.matrix_shape, module.topology, module.tile) for name, module in modules.items()}

    @property
    def nnz(self) -> int:
        """Stored connections of all layers."""
        return sum(module.nnz for module in self.modules.values())

    @property
    def n_sites(self) -> int:
        """Possible connections of all layers."""
        return sum(module.matrix_shape[0] * module.matrix_shape[1] for module in self.modules.values())

    def connections(self, purpose: str, step: int) -> dict[str, Connections]:
        """Every layer's connections, each with its own stream of draws for this purpose and step."""
        return {name: self._connections(name, Rng(self.seed, purpose, name, step)) for name in self.modules}

    def _connections(self, name: str, rng: Rng) -> Connections:
        conn = self.modules[name].connections(rng)
        conn.is_last = name == next(reversed(self.modules))
        conn.initial_draw = lambda flat: 2 * uniform_at(key_of(self.seed, "weight", name), flat) - 1
        return conn

    def watch_absent(self, on: bool) -> None:
        """Whether the next backward pass keeps what growing by gradient needs."""
        for module in self.modules.values():
            module.watch_absent(on)

    def enforce(self) -> None:
        """Absent weights are zero, whatever the optimizer did."""
        for module in self.modules.values():
            module.enforce()

    # Pruning

    def prune(
        self,
        scores: Mapping[str, Tensor],
        density: float,
        *,
        distribution: Distribution = "uniform",
        pattern: Pattern | None = None,
        per_row: bool = False,
        only: str | None = None,
    ) -> list[Change]:
        """Removes the lowest scores until the layers together have ``density``; what is gone stays gone, unless all sites are scored.

        Args:
            scores: ``(nnz,)`` per layer, or ``(n_out, n_in)`` of a pruner that lets connections return.
            distribution: ``global`` compares scores across layers, each of which keeps at least one connection; the others give each
                layer its own budget. With n:m every layer has the same density.
            per_row: every output unit of a layer keeps the same number, up to one; a pattern other than unstructured compares its own units.
            only: prune this layer alone; scores of the others are not needed.
        """
        pattern = pattern or Unstructured()
        if only is not None and distribution == "global":
            raise PluginError("distribution 'global' compares layers, and a sequential pruner scores them one by one", fix="use uniform")
        chosen = self.modules if only is None else {only: self.modules[only]}
        for name, module in chosen.items():
            if scores[name].shape not in ((module.nnz,), module.matrix_shape):
                raise PluginError(f"layer {name!r}: scores must have shape ({module.nnz},), got {tuple(scores[name].shape)}")
        if distribution == "global":
            budget = self._global_budget(scores, density)
        else:
            budget = distribute(self.shapes, density, distribution)
        if isinstance(pattern, NOfM):
            budget = distribute(self.shapes, density, "uniform")
        trades = distribution == "global" and not isinstance(pattern, NOfM)  # a layer may get what another loses, if its sites have scores
        changes = []
        for name, module in chosen.items():
            conn, of_sites = module.connections(), scores[name].dim() == 2
            most = conn.n_sites if of_sites and trades else module.nnz
            n_keep = min(budget[name], most)
            present, score = conn.flat, scores[name].reshape(-1)
            if of_sites:
                flat = torch.arange(conn.n_sites, device=present.device)
                conn = replace(conn, row=flat // conn.n_in, col=flat % conn.n_in)
            fitted, equal_rows = fitted_pattern(module, pattern)
            n_keep = min(most, fitted_nnz(n_keep, module.matrix_shape, module.topology, module.tile))
            if equal_rows or (per_row and isinstance(fitted, Unstructured)):
                share = torch.arange(conn.n_out, 0, -1, device=conn.row.device).sub_(1)  # the remainder goes to the first rows
                keep = keep_best_per_row(score, conn.row, (n_keep + share) // conn.n_out)
            else:
                keep = keep_by_pattern(score, conn, n_keep, fitted, module.kernel)
            new = torch.empty((2, 0), dtype=torch.int64, device=keep.device)
            if of_sites:
                returning, keep = keep.clone(), keep[present]
                returning[present] = False
                new = torch.stack([conn.row[returning], conn.col[returning]])
            changes.append(self.change(name, keep, new))
        return changes

    def _global_budget(self, scores: Mapping[str, Tensor], density: float) -> dict[str, int]:
        n_keep = min(total_nnz(self.n_sites, density), self.nnz)
        keep = keep_best(torch.cat([scores[name].detach().double().reshape(-1) for name in self.modules]), n_keep)
        counts = [int(part.sum()) for part in torch.split(keep, [scores[name].numel() for name in self.modules])]
        while 0 in counts and max(counts) > 1:  # no layer may disconnect the network
            counts[counts.index(max(counts))] -= 1
            counts[counts.index(0)] += 1
        return dict(zip(self.modules, counts, strict=True))

    def score(self, pruner: Pruner, step: int) -> dict[str, Tensor]:
        """``pruner.score`` of every layer, or ``score_sites`` of a pruner that lets connections return."""
        score = pruner.score_sites if pruner.revives else pruner.score
        return {name: score(conn) for name, conn in self.connections("prune", step).items()}

    # Rewiring

    def prepare(self, method: Pruner | Rewirer) -> None:
        """What the method needs of its layers in a fresh and in a resumed trial."""
        for module in self.modules.values():
            module.keeps_absent = method.revives
        acts = isinstance(method, Pruner) and type(method).before_step is not Pruner.before_step
        if acts and self.optimizer is not None and self._before_step is None:
            self._before_step = self.optimizer.register_step_pre_hook(lambda *_: self.before_step(method))

    def start(self, method: Pruner | Rewirer) -> None:
        """Gives every layer the method's first state."""
        self.prepare(method)
        if isinstance(method, Rewirer) and type(method).initial_state is not Rewirer.initial_state:
            for name, conn in self.connections("state", 0).items():
                self.modules[name].method_state = dict(method.initial_state(conn))

    def before_step(self, method: Pruner | Rewirer) -> None:
        """Lets a pruner see weights and gradients before the optimizer changes them; ``prepare`` has the optimizer call it."""
        assert isinstance(method, Pruner)
        for module in self.modules.values():
            conn = module.connections()
            method.before_step(conn)
            module.method_state = dict(conn.state)

    def on_step(self, method: Pruner | Rewirer, lr: float, step: int) -> None:
        """Lets the method act after an optimizer step; costs nothing for methods that do not."""
        if type(method).on_step in (Rewirer.on_step, Pruner.on_step):
            return
        for name, conn in self.connections("step", step).items():
            method.on_step(conn, lr, conn.rng)
            self.modules[name].write_values(conn.weight)
            self.modules[name].method_state = dict(conn.state)

    def rewire(self, rewirer: Rewirer, progress: Progress) -> list[Change]:
        """One update of every layer; the total number of connections stays."""
        layers = self.connections("rewire", progress.step)
        total = self.nnz
        target = rewirer.redistribute(layers, progress)
        if target is None:
            target = {name: self.asked[name] if rewirer.varies_nnz or conn.tile > 1 else conn.nnz for name, conn in layers.items()}
        elif sum(target.values()) != total:
            raise PluginError(f"rewirer {rewirer.name!r} redistributed {total} connections into {sum(target.values())}")
        changes = []
        for name, conn in layers.items():
            module = self.modules[name]
            update = update_of(rewirer, conn, progress, target[name])
            change = self.change(name, update.keep, update.new, rewirer, conn)
            peak = change.nnz if rewirer.redistributes else change.n_peak
            changes.append(replace(change, n_peak=max(peak, rewirer.n_peak(conn, progress))))
            if module.nnz != target[name] and not rewirer.varies_nnz and module.tile == 1:
                raise PluginError(
                    f"rewirer {rewirer.name!r} left layer {name!r} with {self.modules[name].nnz} connections, asked {target[name]}"
                )
        return changes

    def change(self, name: str, keep: Tensor, new: Tensor, rewirer: Rewirer | None = None, old: Connections | None = None) -> Change:
        """The surgery: connections, weights, optimizer slots and the method's state of one layer, as a method has chosen.

        Args:
            keep: ``(nnz,)`` bool: who stays.
            new: ``(2, k)`` int64 sites that grow; none of them stays.
            rewirer: gives grown connections their first weight and state; default: zero, or what the layer stores there.
            old: the layer's connections, where the caller has them.

        Raises:
            InvalidMask: sites that do not fit, or given twice.
            PluginError: sites that are there already.
        """
        module = self.modules[name]
        if not new.numel() and bool(keep.all()):
            return Change(name, 0, 0, module.nnz, module.nnz)
        old = old or self._connections(name, Rng("unseeded"))
        new_flat = check_sites(new, module.matrix_shape, layer=name)
        remap = remap_sites(module.flat_sites(), keep, new_flat, regrown_are_kept=rewirer is not None and rewirer.keeps_regrown)
        if remap.n_twice:
            raise PluginError(f"layer {name!r}: {remap.n_twice} of {new_flat.numel()} grown connections are already there")
        values = remap.gather(old.weight)
        state = {key: remap.gather(value) for key, value in old.state.items()}
        if rewirer is not None and remap.grown.numel():
            self._fill_grown(old, remap, values, state, rewirer)
        elif old.dense is not None:
            values[remap.is_new] = old.dense.weight.reshape(-1)[remap.grown]
        self._remap_slots(module, remap, values)
        module.method_state = state
        if self.on_change is not None:
            self.on_change(name, remap)
        return Change(name, remap.n_dropped, remap.grown.numel(), remap.flat.numel(), max(remap.before.numel(), remap.flat.numel()))

    @staticmethod
    def _fill_grown(old: Connections, remap: Remap, values: Tensor, state: dict[str, Tensor], rewirer: Rewirer) -> None:
        row = torch.div(remap.grown, old.n_in, rounding_mode="trunc")
        sites = torch.stack([row, remap.grown - row * old.n_in])
        weight = rewirer.grown_weight(old, sites, old.rng).to(values.dtype)
        if int(torch.count_nonzero(weight)):  # zeros are there already
            values[remap.is_new] = weight  # ascending by site, as remap.grown is
        grown = replace(old, row=sites[0], col=sites[1], weight=weight, grad=None, state={})
        for key, first in rewirer.initial_state(grown).items():
            state[key][remap.is_new] = first.to(state[key].dtype)

    def _remap_slots(self, module: SparseModule, remap: Remap, values: Tensor) -> None:
        parameter, optimizer = module.weight_parameter, self.optimizer
        shape = parameter.shape
        slots = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        arrays = {key: slot for key, slot in slots.items() if isinstance(slot, Tensor) and slot.dim()}
        moved = {key: module.remap_slot(slot, remap) for key, slot in arrays.items() if slot.shape == shape}
        parameter.grad = None  # it belongs to the old topology
        module.set_topology(remap, values)
        if optimizer is not None and len(moved) < len(arrays) and parameter.shape != shape:
            del optimizer.state[parameter]  # factored slots (Adafactor) belong to the old shape: the optimizer starts them anew
            return
        slots.update(moved)
        if optimizer is not None and "step_size" in moved:  # Rprop's, which starts at the learning rate and never leaves zero
            lr = next(group["lr"] for group in optimizer.param_groups if any(each is parameter for each in group["params"]))
            moved["step_size"][module.as_stored(remap.is_new)] = lr


def parameters_and_names(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters with their names, in the order that optimizers see."""
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
