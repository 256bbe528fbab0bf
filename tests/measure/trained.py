"""Saved networks as a trial leaves them, without training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sparsefleet.trial.build import Network, build_network
from sparsefleet.trial.masks import pack_masks
from sparsefleet.trial.spec import Method, PluginRef, Sgd, Train, TrialSpec


@dataclass(frozen=True)
class Row:
    key: str
    spec: dict[str, Any]
    record: dict[str, Any] | None
    twin_key: str | None = None
    rival_key: str | None = None


def spec_of(layer: str = "csr", density: float = 0.1, seed: int = 0, rewirer: str = "static", **changes: Any) -> TrialSpec:
    method = Method(rewirer=PluginRef(name=rewirer)) if density < 1 else Method()
    values: dict[str, Any] = {
        "dataset": PluginRef(name="digits"),
        "model": PluginRef(name="mlp", params={"hidden": [128]}),
        "layer": PluginRef(name=layer),
        "method": method,
        "density": density,
        "optimizer": Sgd(lr=0.1, momentum=0.9),
        "train": Train(epochs=1),
        "seed": seed,
    }
    return TrialSpec.model_validate(values | changes)


def record_of(spec: TrialSpec, nnz: int = 800, **changes: Any) -> dict[str, Any]:
    execution = {"csr": "sparse_csr", "masked": "masked_dense", "dense": "dense"}[spec.layer.name]
    layer = {"name": "fc1", "shape": [128, 64], "execution": execution, "nnz_asked": 800, "nnz": nnz, "fan_in_cv": 0.3, "fan_out_cv": 0.3}
    return {
        "state": "SUCCEEDED",
        "device": {"device": "cpu", "class": "cpu:test", "threads": 1},
        "code": {"core": "c", "layer/csr": "l", "rewirer/static": "r"},
        "counts": {"layers": [layer], "total_params_model": 10_000},
    } | changes


def row_of(spec: TrialSpec, twin: str | None = None, **changes: Any) -> Row:
    return Row(spec.spec_id, spec.to_json(), record_of(spec, **changes), twin)


def save(spec: TrialSpec, folder: Path) -> tuple[Network, Path, Path | None]:
    folder.mkdir(parents=True, exist_ok=True)
    network = build_network(spec)
    model = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in network.module.state_dict().items()}, model)
    if not network.sparse:
        return network, model, None
    masks = {name: (network.shapes[name], module.flat_sites()) for name, module in network.sparse.items()}
    pack_masks(masks, {"method": "static", "seed": spec.seed, "step": 0}).write(folder)
    return network, model, folder


def n_sites(network: Network) -> int:
    return sum(math.prod(shape) for shape in network.shapes.values())
