"""SR-STE against a slow reference written from arXiv 2102.04010: a dense weight, its N:M mask, straight-through gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from small_net import biases, dense_weights, gradients, masks, train_step
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from sparsefleet_plugins.layers.masked import Masked
from sparsefleet_plugins.rewiring.sr_ste import SrSte
from torch import nn

from sparsefleet import Connections, DenseValues, Progress, Rng, UserError
from sparsefleet.nn import Sparsifier
from sparsefleet.nn.topology import Topology
from sparsefleet.registry import Registry, catalog
from sparsefleet.rng import key_of, uniform_at
from sparsefleet.sparsity.pattern import keep_by_pattern
from sparsefleet.sparsity.vocabulary import NOfM
from sparsefleet.trial.build import build_network
from sparsefleet.trial.spec import TrialSpec

LR, STEPS, DECAY = 0.2, 25, 0.05


def mask_slowly(w, n, m):
    """Of every m consecutive inputs of a unit the n largest magnitudes, of equal ones the earlier."""
    mask = np.zeros(w.shape, dtype=bool)
    for i in range(w.shape[0]):
        for start in range(0, w.shape[1], m):
            for j in sorted(range(start, start + m), key=lambda j: (-abs(w[i, j]), j))[:n]:
                mask[i, j] = True
    return mask


def net(n, m):
    """Linear 8 to 12, ReLU, Linear 12 to 4, masked, with n/m of all sites drawn at random."""
    modules, parts = {}, []
    for name, n_in, n_out in (("0", 8, 12), ("2", 12, 4)):
        row, col = RandomConnectivity().draw((n_out, n_in), n_in * n_out * n // m, Rng("sites", name))
        weight = Rng("weights", name).normal(row.numel()) / n_in**0.5
        conn = Connections(name, (n_out, n_in), row, col, weight)
        modules[name] = Masked().build(nn.Linear(n_in, n_out, device="meta"), conn, 0.1 * Rng("bias", name).normal(n_out))
        modules[name].layer_name = name
        parts += [modules[name], nn.ReLU()]
    return nn.Sequential(*parts[:-1]), modules


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_a_training_equals_the_reference(n, m):
    network, modules = net(n, m)
    plugin, n_moved = SrSte(n=n, m=m, decay=DECAY), 0
    topology = Topology(modules, torch.optim.SGD(network.parameters(), lr=LR), seed=0)
    topology.prepare(plugin)
    topology.start(plugin)
    w, live, bias = dense_weights(modules), masks(modules), biases(modules)
    for name, mask in live.items():  # masked-out weights are drawn as the live ones, at their scale
        draw = (2 * uniform_at(key_of(0, "weight", name), torch.arange(mask.size)) - 1).numpy().reshape(mask.shape)
        w[name] = np.where(mask, w[name], draw * np.abs(w[name][mask]).sum() / np.abs(draw[mask]).sum())
    x = Rng("x").normal(32 * 8).view(32, 8)
    y = (x[:, :4] + 0.5 * x[:, 4:]).argmax(1)
    for step in range(1, STEPS + 1):
        train_step(network, modules, topology, x, y)
        topology.on_step(plugin, LR, step - 1)
        n_moved += sum(change.n_grown for change in topology.rewire(plugin, Progress(step, STEPS, 5))) * (step > 1)
        _, by_weight, by_bias, _ = gradients({name: w[name] * live[name] for name in w}, bias, x, y)
        for name in w:
            w[name] = w[name] - LR * (by_weight[name] + DECAY * ~live[name] * w[name])
            bias[name] = bias[name] - LR * by_bias[name]
            live[name] = mask_slowly(w[name], n, m)
        for name, mask in masks(modules).items():
            assert (mask == live[name]).all(), f"step {step}, layer {name}"
            stored = modules[name].weight_parameter.detach().numpy()
            np.testing.assert_allclose(stored, w[name], rtol=1e-9, atol=1e-13, err_msg=f"step {step}, layer {name}")
    assert n_moved > 0  # after the first choice too


def test_defaults_and_clock():
    assert SrSte().model_dump() == {"n": 2, "m": 4, "decay": 2e-4}  # lambda_w of the authors' code
    assert [step for step in range(6) if SrSte().due(Progress(step, 5, 2))] == [1, 2, 3, 4, 5]
    for wrong in ({"n": 4}, {"n": 0}, {"n": 3, "m": 2}):
        with pytest.raises(ValidationError):
            SrSte(**wrong)


def dense_layer(stored, live, kernel=1):
    """Connections of a dense-stored layer."""
    flat = torch.nonzero(live.reshape(-1)).flatten()
    dense = DenseValues(stored, torch.zeros_like(stored), {})
    return Connections(
        "layer", tuple(stored.shape), flat // stored.shape[1], flat % stored.shape[1], stored.reshape(-1)[flat], dense=dense, kernel=kernel
    )


@given(st.integers(0, 10_000), st.sampled_from([(2, 4), (1, 2), (3, 8), (1, 3)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_exactly_n_of_every_m_with_ties_by_position(seed, n_of_m, tied):
    (n, m), draw = n_of_m, Rng(seed)
    stored = draw.normal(5 * 24).view(5, 24)
    stored = stored.round() if tied else stored
    conn = dense_layer(stored, draw.uniform(5 * 24).view(5, 24) < 0.5)
    keep, new = SrSte(n=n, m=m).update(conn, Progress(1, 10, 5), Rng(0), 5 * 24 * n // m)
    got = set(conn.flat[keep].tolist()) | set((new[0] * 24 + new[1]).tolist())
    assert got == set(np.flatnonzero(mask_slowly(stored.numpy(), n, m)).tolist())
    assert len(got) == int(keep.sum()) + new.shape[1] == 5 * 24 * n // m


def test_groups_of_a_convolution_run_along_its_input_channels():
    """The authors permute to (out, height, width, in) first; consecutive elements of a 3 x 3 kernel are no group."""
    stored = Rng("conv").normal(2 * 8 * 9).view(2, 8, 3, 3)
    conn = dense_layer(stored.view(2, 72), torch.ones(2, 72, dtype=torch.bool), kernel=9)
    keep, new = SrSte().update(conn, Progress(1, 10, 5), Rng(0), 72)
    assert not new.numel()
    want = np.stack([mask_slowly(stored[:, :, i, j].numpy(), 2, 4) for i in range(3) for j in range(3)], 2)
    assert (keep.view(2, 8, 9).numpy() == want).all()
    module = Masked().build(nn.Conv2d(8, 2, 3, device="meta"), conn, None)
    assert module.connections().kernel == 9


def test_a_last_smaller_group_keeps_n_too():
    """As the n:m pattern of pruners has it."""
    stored = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 7.0, 6.0], [0.0] * 7], dtype=torch.float64)
    conn = dense_layer(stored, torch.ones(2, 7, dtype=torch.bool))
    keep, _ = SrSte().update(conn, Progress(1, 10, 5), Rng(0), 7)
    assert keep.view(2, 7).int().tolist() == [[0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1, 0]]
    assert torch.equal(keep, keep_by_pattern(stored.abs().view(-1), conn, 7, NOfM(n=2, m=4)))
    one = dense_layer(stored[:, :1], torch.ones(2, 1, dtype=torch.bool))
    assert bool(SrSte().update(one, Progress(1, 10, 5), Rng(0), 1).keep.all())


def test_masked_out_weights_decay_and_live_ones_do_not():
    stored = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    conn = dense_layer(stored, torch.tensor([[True, True, False, False]]))
    conn.grad = torch.zeros(2, dtype=torch.float64)
    conn.memory["started"] = torch.tensor(True)
    SrSte(decay=0.5).on_step(conn, 0.1, Rng(0))
    torch.testing.assert_close(stored, torch.tensor([[4.0, 3.0, 1.9, 0.95]], dtype=torch.float64))


def test_the_density_must_be_n_over_m():
    def sparsifier(density, **options):
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
        return Sparsifier(model, optimizer, density=density, total_steps=10, rewirer="sr-ste", layer="masked")

    with pytest.raises(UserError, match=r"2 of every 4 inputs, and density is 0\.4"):
        sparsifier(0.4)
    with pytest.raises(UserError, match="without momentum"):
        sparsifier(0.5, momentum=0.9)
    assert sum(module.nnz for module in sparsifier(0.5).modules.values()) == (96 + 48) // 2
    spec = TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "params": {"hidden": [52]}},
            "layer": {"name": "masked"},
            "method": {"rewirer": {"name": "sr-ste"}},
            "density": 0.25,
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "train": {"epochs": 1, "batch_size": 100},
        }
    )
    with pytest.raises(UserError, match=r"density: 0\.5"):
        build_network(spec, registry=Registry(catalog()))


@pytest.mark.slow
def test_more_than_2_to_the_24_sites():
    n_out, n_in = 4097, 4096
    stored = Rng("big").at(torch.arange(n_out * n_in)).float().view(n_out, n_in)
    conn = dense_layer(stored, torch.zeros(n_out, n_in, dtype=torch.bool))
    _, new = SrSte().update(conn, Progress(1, 10, 5), Rng(0), n_out * n_in // 2)
    assert new.shape[1] == n_out * n_in // 2
    of_group = torch.bincount((new[0] * n_in + new[1]) // 4)
    assert of_group.unique().tolist() == [2]
    assert float(stored[new[0], new[1]].sum()) > 0.66 * float(stored.sum())  # the two largest of four uniform draws hold 7/10 of the sum
