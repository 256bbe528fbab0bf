"""From a spec to a network: model on meta, budgets over layers, connections, storage, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsefleet.connections import Connections
from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.nn.compact import Compact, narrowed, parameters_by_new_name
from sparsefleet.nn.expose import exposed
from sparsefleet.nn.layer_norm import fuse_norms
from sparsefleet.nn.materialise import draw_connections, materialise, rebuilt, replace_module, weight_shape
from sparsefleet.nn.module import SparseModule
from sparsefleet.nn.unit_pruning import n_beside, nnz_by_units, settle, units_left
from sparsefleet.plugin import Connectivity, DataInfo, Layer, Model, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.rng import key_of
from sparsefleet.sparsity.distribute import distribute
from sparsefleet.sparsity.starting import first_nnz
from sparsefleet.sparsity.vocabulary import Neuron
from sparsefleet.trial import files
from sparsefleet.trial.masks import load_masks
from sparsefleet.trial.spec import PluginRef, TrialSpec
from sparsefleet.trial.tensor_file import read_tensors

DENSITY_WITHIN = 0.01
"""How far, relatively, the density of given sites may lie from the one that the trial names."""
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass
class Network:
    """A network that computes.

    Attributes:
        module: the network.
        sparse: its modules that hold connections, input to output; empty for a dense trial.
        shapes: weight shapes of the prunable set, dense-kept modules left out.
        nnz_asked: connections that the spec asks of each of them at the end.
        n_params_dense: trainable parameters if it were dense.
        prunable: names of all modules that could be sparse, dense-kept ones among them, input to output.
        width_factor: 1, or the factor that ``small-dense`` narrowed the model by.
        is_compact: its modules are torch's own, without the units that were removed; ``sparse`` says what they were.
        places: of a compact network: by the key of a parameter or buffer, the flat positions that it has in the whole network's.
        n_beside: parameters that went with removed units and are no connections.
    """

    module: nn.Module
    sparse: dict[str, SparseModule]
    shapes: dict[str, tuple[int, ...]]
    nnz_asked: dict[str, int]
    n_params_dense: int
    width_factor: float = 1.0
    storage: str = "dense"
    dense_kept: list[str] = field(default_factory=list)
    prunable: list[str] = field(default_factory=list)
    is_compact: bool = False
    places: dict[str, Tensor] = field(default_factory=dict)
    n_beside: int = 0


def build_network(
    spec: TrialSpec,
    *,
    registry: Registry | None = None,
    device: str = "cpu",
    sites: Mapping[str, Tensor] | None = None,
    storage: str | None = None,
    data_root: Path | None = None,
) -> Network:
    """The network of ``spec`` before training.

    Args:
        data_root: where a connectivity that reads files looks for them; not needed for a network that is loaded.
        sites: flat positions per layer, for a network that is loaded; default: the spec's connectivity draws them, or all sites for a
            pruner, which starts dense.
        storage: layer plugin to use in place of the one that training starts with.
    """
    registry = registry or Registry()
    info: DataInfo = registry.build("dataset", spec.dataset).info
    module, factor = _on_meta(spec, registry, info)
    model: Model = registry.build("model", spec.model)
    n_params = sum(p.numel() for p in module.parameters())
    names = list(model.prunable(module))
    kept = _dense_kept(spec, names, module)
    shapes = {name: weight_shape(module.get_submodule(name)) for name in names if name not in kept}
    if spec.is_sparse and not shapes:
        raise UserError("keep_dense leaves no layer to make sparse")
    storage = storage or training_storage(spec, registry)
    layer_ref = spec.layer if storage == spec.layer.name else PluginRef(name=storage)
    layer: Layer = registry.build("layer", layer_ref)
    connectivity: Connectivity | None = registry.build("connectivity", spec.connectivity) if spec.method.rewirer else None
    if connectivity is not None and data_root is not None:
        connectivity = connectivity.located(data_root)
    asked = _budget(spec, shapes, connectivity if sites is None or data_root is not None else None)
    if isinstance(spec.method.pattern, Neuron) and _removes_units(spec):
        matrices = {name: (shape[0], math.prod(shape[1:])) for name, shape in shapes.items()}
        asked = nnz_by_units(module, matrices, names[-1], spec.density, spec.method.pattern)
    first = _first(spec, shapes, asked, connectivity, registry) if sites is None else asked

    def connected(name: str) -> tuple[Layer, Connections]:
        shape = shapes[name]
        if sites is None:
            nnz = math.prod(shape) if spec.method.pruner else first[name]
            return layer, draw_connections(name, shape, nnz, connectivity, spec.seed, torch.device(device), layer)
        n_in, flat = math.prod(shape[1:]), sites[name].to(device)
        return layer, Connections(name, (shape[0], n_in), flat // n_in, flat % n_in, torch.empty(0))

    compact = narrowed(module, shapes, sites, layer) if layer.narrows and sites is not None else None
    modules = _OneByOne([] if layer.topology == "all" else list(shapes), connected)
    sparse = materialise(
        module, modules, seed=initial_seed(spec), fan_in=spec.init.fan_in, dtype=DTYPES[spec.train.precision], device=device
    )
    if names and names[-1] in sparse:
        sparse[names[-1]].is_last = True
    if storage != spec.layer.name and spec.is_sparse:  # pruned into what its layer can hold
        target: Layer = registry.build("layer", spec.layer)
        for each in sparse.values():
            each.topology, each.tile = target.topology if target.topology != "all" else "free", target.tile
    network = Network(module, sparse, shapes, asked, n_params, factor, storage, kept, names)
    if compact is not None:
        _take(network, compact)
    elif sites is not None and (registry.build("layer", spec.layer).narrows or _removes_units(spec)):
        units = units_left(module, sites)
        settle(module, units)
        network.n_beside = n_beside(module, units)
    return network


def check_connectivity(spec: TrialSpec, registry: Registry, data_root: Path) -> None:
    """Refuses connections that do not fit the network of ``spec``, before anything is trained; given ones are read, one layer at a time.

    Raises:
        UserError: they are not there or not readable, are for another network or density, or not what the layer can hold.
    """
    connectivity: Connectivity = registry.build("connectivity", spec.connectivity).located(data_root)
    for path in connectivity.files(data_root):
        if not path.is_file():
            raise UserError(f"connectivity {spec.connectivity.name!r}: {path} is not there")
    info: DataInfo = registry.build("dataset", spec.dataset).info
    module, _ = _on_meta(spec, registry, info)
    names = list(registry.build("model", spec.model).prunable(module))
    kept = _dense_kept(spec, names, module)
    shapes = {name: weight_shape(module.get_submodule(name)) for name in names if name not in kept}
    asked = _budget(spec, shapes, connectivity)
    layer: Layer = registry.build("layer", spec.layer)
    for name, shape in shapes.items() if connectivity.reads_files else ():
        draw_connections(name, shape, asked[name], connectivity, spec.seed, torch.device("cpu"), layer)


class _OneByOne(Mapping[str, tuple[Layer, Connections]]):
    """Connections that exist only while their layer is built: drawn sites take several times the bytes of the layer that stores them."""

    def __init__(self, names: list[str], make: Callable[[str], tuple[Layer, Connections]]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> tuple[Layer, Connections]:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _budget(spec: TrialSpec, shapes: Mapping[str, tuple[int, ...]], connectivity: Connectivity | None) -> dict[str, int]:
    """Connections of every layer at the end: the density's, unless the connectivity has its sites from elsewhere."""
    if spec.density >= 1:
        return {name: math.prod(shape) for name, shape in shapes.items()}
    kind = spec.method.distribution
    asked = distribute(shapes, spec.density, "uniform" if kind == "global" else kind)
    if connectivity is None:
        return asked
    connectivity.check_layers(list(shapes))
    given = {name: connectivity.nnz_of(name, (shape[0], math.prod(shape[1:])), asked[name]) for name, shape in shapes.items()}
    other = [name for name in shapes if given[name] != asked[name]]
    wanted, found = (sum(counts[name] for name in other) for counts in (asked, given))
    if other and abs(found / wanted - 1) > DENSITY_WITHIN and abs(found - wanted) > len(other):
        density = found / sum(math.prod(shapes[name]) for name in other)
        raise UserError(
            f"connectivity {connectivity.name!r} has {found:,} connections for {', '.join(other)}; density {spec.density:g} asks for {wanted:,}",
            fix=f"density: {density:.4g}" if 0 < density < 1 else "fewer than all sites" if density else "at least one site",
        )
    return given


def _removes_units(spec: TrialSpec) -> bool:
    return spec.method.pruner is not None and isinstance(spec.method.pattern, Neuron)


def initial_seed(spec: TrialSpec) -> int:
    """What the initial weights are drawn by: the trial's seed, unless it asks for other weights and nothing else."""
    return key_of(spec.seed, "draw", spec.init.draw) if spec.init.draw else spec.seed


def _first(
    spec: TrialSpec,
    shapes: Mapping[str, tuple[int, ...]],
    asked: Mapping[str, int],
    connectivity: Connectivity | None,
    registry: Registry,
) -> Mapping[str, int]:
    """Connections of every layer at the start: those asked, unless the rewirer begins with more and the connectivity can give them."""
    if spec.method.rewirer is None or connectivity is None or spec.density >= 1:
        return asked
    rewirer: Rewirer = registry.build("rewirer", spec.method.rewirer)
    more = first_nnz(rewirer, spec.density, asked, shapes)
    return {name: connectivity.nnz_of(name, (shape[0], math.prod(shape[1:])), more[name]) for name, shape in shapes.items()}


def training_storage(spec: TrialSpec, registry: Registry) -> str:
    """The layer that training starts with: a pruner trains on ``masked`` and moves later, unless the spec's own layer masks dense weights."""
    layer: Layer = registry.build("layer", spec.layer)
    masks = layer.stores_dense and layer.topology == "free"
    return "masked" if spec.method.pruner and not masks else spec.layer.name


def _on_meta(spec: TrialSpec, registry: Registry, info: DataInfo) -> tuple[nn.Module, float]:
    model: Model = registry.build("model", spec.model)
    activation = registry.build("activation", spec.activation)
    build: Callable[[Model], nn.Module] = lambda chosen: _meta(chosen, info, activation.build)  # noqa: E731
    module = build(model)
    if spec.narrow_to_density is None:
        return module, 1.0
    names = list(model.prunable(module))
    kept = _dense_kept(spec, names, module)
    prunable = sum(math.prod(weight_shape(module.get_submodule(name))) for name in names if name not in kept)
    total = sum(p.numel() for p in module.parameters())
    target = total - prunable * (1 - spec.narrow_to_density)
    low, high = 0.0, 1.0
    best: tuple[float, float, nn.Module] | None = None
    for _ in range(40):
        middle = (low + high) / 2
        candidate = build(model.narrowed(middle))
        n_params = sum(p.numel() for p in candidate.parameters())
        if best is None or abs(n_params - target) < abs(best[0] - target):
            best = n_params, middle, candidate
        low, high = (middle, high) if n_params < target else (low, middle)
    assert best is not None
    return best[2], best[1]


def _meta(model: Model, info: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return exposed(model.build(info, act))


def _dense_kept(spec: TrialSpec, names: list[str], module: nn.Module) -> list[str]:
    """Of the prunable ``names`` those that stay dense: ``keep_dense`` names them, their kind (``Conv2d``), or ``first`` and ``last``."""
    aliases = {"first": names[:1], "last": names[-1:]}
    for name in names:
        aliases.setdefault(type(module.get_submodule(name)).__name__, []).append(name)
    kept: list[str] = []
    for asked in spec.method.keep_dense:
        found = aliases.get(asked, [asked] if asked in names else [])
        if not found:
            raise UserError(f"keep_dense names {asked!r}", fix=f"valid: {', '.join([*aliases, *names])}")
        kept += found
    return kept


def load_dense_weights(network: Network, state: Mapping[str, Tensor]) -> None:
    """Gives the network the weights of its trained dense twin, at the sites it has.

    Raises:
        UserError: the twin has other modules or shapes.
    """
    own = dict(network.module.named_parameters()) | dict(network.module.named_buffers())

    def given(key: str, shape: Sequence[int]) -> Tensor:
        """Of that very shape: sites of a larger weight would be others, and a smaller one would be broadcast."""
        if key not in state or tuple(state[key].shape) != tuple(shape):
            has = tuple(state[key].shape) if key in state else "none"
            cause = f"{files.MODEL}: {key} must have the shape {tuple(shape)}, got {has}"
            raise UserError("the network to start from does not fit this model", cause=cause)
        return state[key]

    with torch.no_grad():
        for name, sparse in network.sparse.items():
            weight = given(f"{name}.weight", network.shapes[name]).to(sparse.values())
            sparse.write_values(weight.reshape(-1)[sparse.flat_sites().to(weight.device)])
            bias = getattr(sparse, "bias", None)
            if bias is not None:
                bias.copy_(given(f"{name}.bias", bias.shape))
        for key, value in own.items():
            if not any(key.startswith(f"{name}.") for name in network.sparse) and key in state:
                value.copy_(given(key, value.shape))


def convert(network: Network, spec: TrialSpec, registry: Registry, probe: Tensor) -> tuple[float, dict[str, nn.Parameter]]:
    """Moves every sparse module to the spec's layer, same connections and weights.

    Returns:
        The largest output difference on ``probe`` relative to the largest output, and the old weight and bias parameters by new name, so
        that optimizer slots can follow.
    """
    layer: Layer = registry.build("layer", spec.layer)
    was_training = network.module.training
    network.module.eval()
    with torch.no_grad():
        before = network.module(probe)
    old_parameters: dict[str, nn.Parameter] = _made_compact(network, layer) if layer.narrows else {}
    for name, old in list(network.sparse.items()) if not layer.narrows else ():
        bias = getattr(old, "bias", None)
        new = rebuilt(old, old.connections(), layer)
        new.layer_name, new.kernel, new.init_key, new.is_last = name, old.kernel, old.init_key, old.is_last
        new.method_state, new.method_memory = old.method_state, old.method_memory
        replace_module(network.module, name, new)
        network.sparse[name] = new
        names = {id(p): key for key, p in network.module.named_parameters()}
        old_parameters[names[id(new.weight_parameter)]] = old.weight_parameter
        if bias is not None:
            old_parameters[names[id(new.bias)]] = bias
    fuse_norms(network.module, list(network.sparse.values()))
    network.storage = layer.name
    with torch.no_grad():
        after = network.module(probe)
    network.module.train(was_training)
    scale = before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)
    return float((after - before).abs().max() / scale), old_parameters


def _made_compact(network: Network, layer: Layer) -> dict[str, nn.Parameter]:
    """Moves the network to torch's own modules without the units that are gone; the old parameters by new name."""
    old = parameters_by_new_name(network.module, network.sparse)
    compact = narrowed(network.module, network.shapes, {name: module.flat_sites() for name, module in network.sparse.items()}, layer)
    for name in network.sparse:
        plain: Any = network.module.get_submodule(name)
        n_in, flat = plain.weight[0].numel(), torch.arange(plain.weight.numel(), device=plain.weight.device)
        conn = Connections(name, (plain.weight.shape[0], n_in), flat // n_in, flat % n_in, torch.empty(0))
        replace_module(network.module, name, rebuilt(plain, conn, layer).train(plain.training))
    _take(network, compact)
    return {name: old[name] for name, _ in network.module.named_parameters()}


def _take(network: Network, compact: Compact) -> None:
    network.sparse = dict(compact.described(network.module))
    network.is_compact, network.places, network.n_beside = True, compact.places, compact.n_beside


def load_network(
    spec: TrialSpec,
    model_path: Path,
    masks_folder: Path | None,
    *,
    registry: Registry | None = None,
    device: str = "cpu",
) -> Network:
    """A trained network from its artifacts: model.safetensors, and the folder of its mask artifact if it is sparse.

    Raises:
        IntegrityError: the files do not belong to the spec.
    """
    sites = {name: mask.flat for name, mask in load_masks(masks_folder).items()} if masks_folder else None
    storage = spec.layer.name
    network = build_network(spec, registry=registry, device=device, sites=sites, storage=storage)
    try:
        network.module.load_state_dict(read_tensors(model_path, device))
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise IntegrityError(f"{model_path.name} does not fit the trial {spec.spec_id}", cause=str(error)) from error
    return network
