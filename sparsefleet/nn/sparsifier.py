"""Sparsifier: any pruner or rewirer in anyone's own training loop, with one call per step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from sparsefleet.errors import UserError
from sparsefleet.nn.arguments import check_choices, check_due, check_end, check_holds, check_method, check_names, check_numbers, plugin
from sparsefleet.nn.block import BlockLinear
from sparsefleet.nn.compact import make_compact
from sparsefleet.nn.expose import Exposure
from sparsefleet.nn.layer_norm import fuse_norms
from sparsefleet.nn.linear import SparseLinear
from sparsefleet.nn.masked import MaskedModule
from sparsefleet.nn.materialise import draw_connections, rebuilt, replace_module, weight_shape
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.places import leave_fast_paths, refuse_losses
from sparsefleet.nn.topology import Change, Topology
from sparsefleet.nn.unit_pruning import prune_units
from sparsefleet.plugin import Connectivity, Layer, Plugin, Progress, Pruner, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.rng import key_of
from sparsefleet.sparsity.distribute import distribute
from sparsefleet.sparsity.schedule import density_at, pruning_steps
from sparsefleet.sparsity.starting import first_nnz
from sparsefleet.sparsity.vocabulary import Distribution, Neuron, OneShot, Pattern, Schedule, Unstructured

_P = TypeVar("_P", bound=Plugin)


class Sparsifier:
    """Makes a model sparse in place and keeps it so: ``sparsifier.step()`` after ``loss.backward()`` stands where ``optimizer.step()`` stood.

    The modules of the model are replaced at once: a rewirer's by ``layer`` with the sites that ``connectivity`` draws, a pruner's by dense
    storage with a mask, until ``finish``. Weights stay what they are at those sites, the optimizer's parameters and slots follow. Modules that
    are sparse already (``sparsefleet.nn``) are taken as they are; one that stands in several places is replaced in all of them. ``nn.LSTM``,
    ``nn.GRU`` and ``nn.MultiheadAttention`` become modules of ours whose gates and projections are sparse (``LSTM`` …); an Embedding stays dense.
    It uses the code of a trial: same seed, names, weights and batches give the same masks.

    Args:
        model: on its device, with its first weights.
        optimizer: over the model's parameters.
        density: kept share of the weights of all chosen modules together.
        pruner: a pruner, the name of one, or ``{name: {parameter: value}}`` as in a grid.
        rewirer: likewise; exactly one of both.
        layer: what stores the weights, or its name; for a pruner: after ``finish``.
        total_steps: steps of the whole training, for schedules.
        steps_per_epoch: for methods that act at the end of an epoch; default ``total_steps``.
        keep_dense: names of modules that stay dense.
        options: ``connectivity`` (random), ``distribution`` (uniform), ``schedule`` (one-shot at step 0), ``pattern`` (unstructured),
            ``seed`` (0).

    Raises:
        UserError: the method cannot run with this layer or optimizer, an argument or a name is none, or a module has
            hooks or shares a parameter; the model is then as it was.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        density: float,
        total_steps: int,
        pruner: Pruner | str | Mapping[str, Any] | None = None,
        rewirer: Rewirer | str | Mapping[str, Any] | None = None,
        layer: Layer | str | Mapping[str, Any] = "csr",
        steps_per_epoch: int | None = None,
        keep_dense: Collection[str] = (),
        connectivity: Connectivity | str | Mapping[str, Any] = "random",
        distribution: Distribution = "uniform",
        schedule: Schedule | None = None,
        pattern: Pattern | None = None,
        seed: int = 0,
    ) -> None:
        if (pruner is None) == (rewirer is None):
            raise UserError("a Sparsifier takes a pruner or a rewirer, and not both")
        check_numbers(total_steps, steps_per_epoch)
        check_choices(distribution, schedule, pattern, has_pruner=pruner is not None)
        exposure = Exposure(model, optimizer, skip=() if isinstance(keep_dense, str) else keep_dense)
        check_names(model, keep_dense, exposure.ours)
        registry = Registry()
        self.pruner = plugin(registry, "pruner", pruner)
        self.rewirer = plugin(registry, "rewirer", rewirer)
        self.layer: Layer = plugin(registry, "layer", layer)
        self.model, self.optimizer, self.density, self.seed, self.step_count = model, optimizer, density, seed, 0
        self.total_steps, self.per_epoch = total_steps, steps_per_epoch or total_steps
        self.schedule, self.pattern, self.distribution = schedule or OneShot(), pattern or Unstructured(), distribution
        self.prunings = pruning_steps(self.schedule, total_steps) if self.pruner else []
        masks = self.layer.stores_dense and self.layer.topology == "free"
        storage = self.layer if self.rewirer or masks else plugin(registry, "layer", "masked")
        check_method(self.method, storage, optimizer)
        if self.rewirer:
            check_due(self.rewirer, total_steps, self.per_epoch)
        else:
            check_end(self.layer, pattern)
        with exposure:
            kept = {id(module) for name, module in model.named_modules(remove_duplicate=False) if name in keep_dense}
            kinds = set(storage.kinds) - {"Embedding"}
            names = [name for name, module in model.named_modules() if type(module).__name__ in kinds and id(module) not in kept]
            self.topology = Topology(*self._sparse(names, storage, plugin(registry, "connectivity", connectivity)))
        self.topology.start(self.method)
        self._watch()
        if 0 in self.prunings:
            self._prune()

    @property
    def method(self) -> Pruner | Rewirer:
        """The pruner or the rewirer."""
        method: Pruner | Rewirer | None = self.pruner or self.rewirer
        assert method is not None
        return method

    @property
    def modules(self) -> Mapping[str, SparseModule]:
        """The sparse modules by name, input to output."""
        return self.topology.modules

    def _sparse(
        self, names: list[str], storage: Layer, connectivity: Connectivity
    ) -> tuple[dict[str, SparseModule], torch.optim.Optimizer, int, dict[str, tuple[int, ...]], dict[str, int]]:
        """Builds all modules, then replaces old ones and their parameters; the arguments of the topology."""
        model, present = self.model, {name: m for name, m in self.model.named_modules() if isinstance(m, SparseModule)}
        names = [name for name in names if not any(name.startswith(f"{parent}.") for parent in present)]
        refuse_losses(model, names, fix="register them once the Sparsifier stands, or name the module in keep_dense")
        if not (names or present):
            raise UserError(
                f"the model has no module that layer {self.layer.name!r} can store", fix=f"it stores: {', '.join(storage.kinds)}"
            )
        check_holds(self.optimizer, [model.get_submodule(name).get_parameter("weight") for name in names])
        shapes = {name: weight_shape(model.get_submodule(name)) for name in names}
        asked = distribute(shapes, self.density, "uniform" if self.distribution == "global" else self.distribution) if names else {}
        first = first_nnz(self.rewirer, self.density, asked, shapes) if self.rewirer else asked
        made: dict[str, SparseModule] = {}
        for name, shape in shapes.items():
            old = model.get_submodule(name)
            nnz = math.prod(shape) if self.pruner else first[name]
            conn = draw_connections(name, shape, nnz, connectivity, self.seed, old.get_parameter("weight").device, storage)
            made[name] = new = rebuilt(old, conn, storage)
            new.layer_name, new.kernel, new.init_key = name, math.prod(shape[2:]), key_of(self.seed, "weight", name)
            if self.pruner and _kind(new) in self.layer.kinds:
                new.topology, new.tile = self.layer.topology if self.layer.topology != "all" else "free", self.layer.tile
        self._replace(made)
        for name, module in present.items():
            module.layer_name = name
        chosen = {name: m for name, m in model.named_modules() if isinstance(m, SparseModule)}
        for name, module in chosen.items():
            shapes.setdefault(name, module.matrix_shape)
            asked.setdefault(name, module.nnz)
            module.is_last = name == next(reversed(chosen))
        fuse_norms(model, list(chosen.values()))
        leave_fast_paths(model)
        return chosen, self.optimizer, self.seed, shapes, asked

    def _replace(self, made: Mapping[str, SparseModule]) -> None:
        """Puts the modules in the places of those of these names, wherever they stand, and their parameters into the optimizer."""
        stands_for = {self.model.get_submodule(name): new for name, new in made.items()}
        for old, new in stands_for.items():
            was, weight = (old, old.weight_parameter) if isinstance(old, SparseModule) else (None, old.get_parameter("weight"))
            _exchange(self.optimizer, weight, new.weight_parameter, new, was)
            before, after = getattr(old, "bias", None), getattr(new, "bias", None)
            if before is not None and after is not None:
                _exchange(self.optimizer, before, after, None)
        for name, module in list(self.model.named_modules(remove_duplicate=False)):
            if module in stands_for:
                replace_module(self.model, name, stands_for[module])

    # One step

    def step(self) -> list[Change]:
        """The optimizer's step, or the update that takes its place, then whatever is due; what changed, by layer.

        Gradients must be there, and stay until it returns. For methods that grow by gradient it has told the layers to watch: they grow by
        the sum over all backward passes since the last call, as gradients accumulate.
        """
        rewirer, changes = self.rewirer, []
        before, after = self._progress(self.step_count), self._progress(self.step_count + 1)
        in_place = rewirer is not None and rewirer.replaces_step and rewirer.due(before)
        follows = rewirer is not None and not rewirer.replaces_step and rewirer.due(after)
        if not in_place:
            self.optimizer.step()
            self.topology.enforce()
            self.topology.on_step(self.method, self.optimizer.param_groups[0]["lr"], self.step_count)
        self.step_count += 1
        if rewirer is not None and (in_place or follows):
            changes = self.topology.rewire(rewirer, before if in_place else after)
        if self.step_count in self.prunings:
            changes = self._prune()
        self._watch()
        return changes

    def _progress(self, step: int) -> Progress:
        return Progress(step, self.total_steps, self.per_epoch)

    def _watch(self) -> None:
        """Tells the layers whether the coming pass must keep what growing by gradient needs."""
        method = self.method
        on = method.needs_dense
        if isinstance(method, Rewirer) and method.needs_absent_grad:
            on = on or method.due(self._progress(self.step_count + (0 if method.replaces_step else 1)))
        self.topology.watch_absent(on)

    def _prune(self) -> list[Change]:
        pruner = self.pruner
        assert pruner is not None
        density = density_at(self.schedule, self.step_count, self.total_steps, self.density)
        scores = self.topology.score(pruner, self.step_count)
        if isinstance(self.pattern, Neuron):
            return prune_units(self.model, self.topology, scores, density, self.pattern, self.distribution, end=self.density)
        return self.topology.prune(scores, density, distribution=self.distribution, pattern=self.pattern, per_row=pruner.per_row)

    # The result

    def finish(self) -> nn.Module:
        """The model with its final layers: what a pruner left moves from dense storage to ``layer``; slots follow, training may go on.

        What ``layer`` does not store, as a Conv2d, stays masked.

        Raises:
            UserError: pruning has not reached its end, or a module that moves has hooks.
        """
        if self.pruner and self.prunings and self.step_count < self.prunings[-1]:
            raise UserError(f"pruning ends at step {self.prunings[-1]}, and {self.step_count} are done")
        if self.pruner is None or (self.layer.stores_dense and self.layer.topology == "free"):
            return self.model
        moving = {name: old for name, old in self.modules.items() if _kind(old) in self.layer.kinds}
        refuse_losses(self.model, moving, fix="remove them, and register them again after finish()")
        if self.layer.narrows:
            self.topology = Topology(make_compact(self.model, self.modules, self.layer, self.optimizer), self.optimizer, self.seed)
            return self.model
        made: dict[str, SparseModule] = {}
        for name, old in moving.items():
            made[name] = new = rebuilt(old, old.connections(), self.layer)
            new.layer_name, new.kernel, new.init_key, new.is_last = name, old.kernel, old.init_key, old.is_last
        self._replace(made)
        fuse_norms(self.model, list(made.values()))
        self.topology = Topology({**self.modules, **made}, self.optimizer, self.seed, self.topology.shapes)
        return self.model

    def masks(self) -> dict[str, Tensor]:
        """``(2, nnz)`` int64 live sites of every sparse module, output unit and input unit, ascending."""
        found = {}
        for name, module in self.modules.items():
            flat, n_in = module.flat_sites(), module.matrix_shape[1]
            found[name] = torch.stack([flat // n_in, flat % n_in])
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs beside the model's and the optimizer's own state dicts."""
        return {
            "step": self.step_count,
            "seed": self.seed,
            "method": self.method.name,
            "connections": {name: _checksum(module) for name, module in self.modules.items()},
            "method_state": {name: dict(module.method_state) for name, module in self.modules.items()},
            "dense_state": {name: dict(module.dense_state) for name, module in self.modules.items()},
            "memory": {name: dict(module.method_memory) for name, module in self.modules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state`` was taken; load the model's and the optimizer's state dicts first.

        Raises:
            UserError: it was taken with another method or seed, or the model has other connections.
        """
        for key, own in (("method", self.method.name), ("seed", self.seed)):
            if state[key] != own:
                raise UserError(f"the state dict has {key} {state[key]!r}, this Sparsifier {own!r}")
        for name, module in self.modules.items():
            if state["connections"][name] != _checksum(module):
                raise UserError(f"layer {name!r} has other connections than the state dict", fix="load the model's state dict first")
        self.step_count = int(state["step"])
        for name, module in self.modules.items():
            device = module.weight_parameter.device
            module.method_state = {key: value.to(device) for key, value in state["method_state"][name].items()}
            module.dense_state = {key: value.to(device) for key, value in state["dense_state"][name].items()}
            module.method_memory = dict(state["memory"][name])
        self._watch()


def _checksum(module: SparseModule) -> tuple[int, int]:
    """Number and sum of the sites, which hardly ever agree for different ones."""
    flat = module.flat_sites()
    return flat.numel(), int(flat.sum())


def _kind(module: SparseModule) -> str:
    """The name of the torch module that it stands for."""
    return type_before_parametrizations(module.inner).__name__ if isinstance(module, MaskedModule) else "Linear"


def _exchange(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    module: SparseModule | None,
    was: SparseModule | None = None,
) -> None:
    """Puts ``new`` in the place of ``old``, with its slots; those of a dense-stored weight as the sparse ``module`` stores its connections."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    new.requires_grad_(old.requires_grad)
    slots = optimizer.state.pop(old, {})
    if module is not None and any(isinstance(slot, Tensor) and slot.dim() and slot.shape != old.shape for slot in slots.values()):
        return  # factored slots (Adafactor) belong to the old shape: the optimizer starts them anew
    place: Tensor | slice | None = None if module is None else module.flat_sites()
    if isinstance(was, SparseLinear):
        place = was.place if isinstance(was, BlockLinear) else slice(None)
    for key, slot in slots.items():
        if isinstance(slot, Tensor) and slot.dim() and module is not None:
            slot = module.as_stored(slot.reshape(-1)[place])
        optimizer.state[new][key] = slot
