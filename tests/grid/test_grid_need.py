"""Memory before launch: by hand on a small chain, and against what a training step really allocates."""

from __future__ import annotations

import pytest
import torch
from grid_plugins import CATALOGUE, GIB, grid_of

from sparsefleet.grid import need
from sparsefleet.grid.load import load_grid
from sparsefleet.grid.need import Chain, chain_of, size_text
from sparsefleet.grid.plan import plan
from sparsefleet.plugin import DataInfo
from sparsefleet.registry import catalog
from sparsefleet.sparsity.bytes import resident_bytes
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.trial.build import build_network
from sparsefleet.trial.objective import loss_of, make_optimizer
from sparsefleet.trial.spec import TrialSpec

WIDE = ["input*repeat", "hidden", "hidden[-1]:readout=grouped-sum", "outputs:readout=dense"]
MNIST = {"input": 784, "outputs": 10}
STATE = {"density": 0.1, "optimizer": {"sgd": {"momentum": 0.9}}, "train": {"batch_size": 8}}


def test_chains_follow_the_parameters_of_the_model():
    summed = chain_of(WIDE, MNIST, {"hidden": [30, 20], "repeat": 10, "readout": "grouped-sum"})
    assert summed == Chain((7840, 30, 20, 20), (False, True, True, True))
    read = chain_of(WIDE, MNIST, {"hidden": [30, 20], "repeat": 1, "readout": "dense"})
    assert read == Chain((784, 30, 20, 10), (False, True, True, False))
    assert chain_of(["input", "hidden", "outputs"], MNIST, {"width": 8}) is None
    assert chain_of(["input", "hidden", "outputs"], MNIST, {"hidden": [{"select": [1]}]}) is None


def test_bytes_by_hand():
    chain = Chain((6, 10, 4), (False, True, False))  # 100 weights, 14 units with three parameters each
    sparse = need.sparse(STATE, chain, 16.0)
    activations = 4 * 8 * (2 * 14 + 4 * 10)
    assert sparse.parts == {"weights": 208, "indices": 160, "gradients": 208, "optimizer": 208, "activations": activations}
    dense = need.dense(STATE, chain)
    assert (dense.weights, dense.indices, dense.optimizer) == (4 * 142, 0, 4 * 142)
    assert need.dense(STATE, chain, masked=True).total - dense.total == 5 * 100
    adam = need.dense({**STATE, "optimizer": {"adam": {}}, "train": {"batch_size": 8, "precision": "fp64"}}, chain)
    assert (adam.weights, adam.optimizer, adam.activations) == (8 * 142, 16 * 142, 2 * activations)
    assert max(need.most(chain, 8), adam.total) == need.most(chain, 8)


def test_layers_that_stay_dense_count_whole_and_have_no_indices():
    chain = Chain((784, 1_000_000, 10), (False, True, False))
    takes = need.sparse({**STATE, "density": 16 / 784, "method": {"keep_dense": ["last"]}}, chain, 12.0)
    assert takes.indices == pytest.approx(12 * 16e6)
    assert takes.weights == pytest.approx(4 * (16e6 + 10e6 + 3 * 1_000_010))


def test_small_dense_has_the_parameters_of_the_connections():
    chain = Chain((7840, 50_000, 50_000, 50_000, 50_000, 50_000), (False, *[True] * 5))
    small = chain.narrowed(0.001 * chain.n_weights + 3 * chain.n_units)
    assert small.n_weights + 3 * small.n_units == pytest.approx(0.001 * chain.n_weights + 3 * chain.n_units, rel=0.01)
    assert small.widths[0] == 7840
    assert len(set(small.widths[1:])) == 1


@pytest.mark.parametrize("layer", ["csr", "dense"])
def test_a_training_step_allocates_what_was_estimated(layer):
    """Weights, indices and slots are counted; activations and what backward holds are an estimate: between 0.8 and 1.7 of the truth."""
    params = {"hidden": [3000, 3000], "repeat": 1}
    how = {"layer": {"name": "csr"}, "method": {"rewirer": {"name": "static"}}, "density": 0.02} if layer == "csr" else {}
    spec = TrialSpec(
        dataset={"name": "digits"},
        model={"name": "wide-mlp", "params": params},
        optimizer={"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        train={"epochs": 1, "batch_size": 128},
        **how,
    )
    x, y = torch.randn(128, 1, 8, 8), torch.zeros(128, dtype=torch.int64)
    network = build_network(spec)
    optimizer = make_optimizer(spec.optimizer, spec.train, list(network.module.parameters()))

    def train() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            loss_of(network.module(x), y, DataInfo("classification", (1, 8, 8), 10)).backward()
            optimizer.step()

    measured = sum(resident_bytes(network.module).values()) + peak_bytes(train)
    state = {"density": spec.density, "optimizer": {"sgd": {"momentum": 0.9}}, "train": {"batch_size": 128}}
    chain = chain_of(WIDE, {"input": 64, "outputs": 10}, {**params, "readout": "grouped-sum"})
    estimate = need.sparse(state, chain, 16.0) if layer == "csr" else need.dense(state, chain)
    assert 0.8 < estimate.total / measured < 1.7


HEAD = """\
name: wide
dataset: mnist
model: {mlp: {hidden: [50000, 50000, 50000]}}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
train: {epochs: 1, batch_size: 64}
layer: csr
density: 0.001
method: {rewirer: static}
"""


def test_a_plan_says_what_each_trial_takes_and_that_dense_is_infeasible():
    made = plan(grid_of("", HEAD), CATALOGUE, memory_bytes=24 * GIB)
    lines = [line.strip() for line in made.lines()]
    (sparse,) = [line for line in lines if line.startswith("memory sparse, layer=csr, width 50,000: ")]
    assert all(word in sparse for word in ("weights", "indices", "gradients", "optimizer", "activations"))
    (small,) = [line for line in lines if line.startswith("memory small-dense, layer=dense, narrowed to width 1,")]
    assert all(line.endswith("), data and torch aside") for line in (sparse, small))
    assert "note   dense infeasible for 1: training the dense weight needs 56.4 GiB, this machine has 24.0 GiB" in lines
    assert made.totals.twins == 0
    kinds = {entry["arm"]: entry for entry in made.to_json()["memory"]}
    assert set(kinds) == {"sparse", "small-dense"}
    n = 0.001 * (784 * 50_000 + 2 * 50_000**2 + 500_000)
    assert kinds["sparse"]["indices"] == pytest.approx(16 * n, rel=1e-6)
    assert kinds["sparse"]["total"] == sum(
        kinds["sparse"][name] for name in ("weights", "indices", "gradients", "optimizer", "activations")
    )


def test_of_a_large_grid_the_plan_gives_a_bound():
    values = ", ".join(f"{n / 10000:.4f}" for n in range(1, 1200))
    made = plan(
        grid_of(f"axes: {{density: [{values}]}}\n", HEAD.replace("density: 0.001\n", "").replace("50000, 50000, 50000", "64")), CATALOGUE
    )
    assert made.points > 1000
    assert f"memory every trial takes less than {size_text(made.totals.memory_bound)}, data and torch aside" in [
        x.strip() for x in made.lines()
    ]


def test_every_model_that_ships_declares_a_chain_or_has_no_estimate():
    models = {entry.name: entry.facts["chain"] for entry in catalog().entries if entry.family == "model"}
    assert models["mlp"] == ["input", "hidden", "outputs"]
    assert models["wide-mlp"] == WIDE


@pytest.mark.parametrize(("name", "width", "weight"), [("wide-mnist", 50_000, "38.7 GiB"), ("million", 1_000_000, "3.6 TiB")])
def test_the_wide_grids_that_ship_say_what_they_need_and_try_no_dense_twin(name, width, weight):
    made = plan(load_grid(name, catalog=catalog()), catalog(), memory_bytes=24 * GIB)
    assert made.totals.twins == 0
    assert dict(made.totals.controls) == {"small-dense": 1}
    assert dict(made.totals.infeasible) == {f"dense weight needs {weight}, this machine has 24.0 GiB": 1}
    assert not made.totals.skipped
    (sparse,) = [takes for (arm, _, widest), takes in made.totals.memory.items() if arm == "sparse" and widest == width]
    assert 0.3 * GIB < sparse.total < 1.3 * GIB
