"""What goes wrong in public rewiring code, and not in ours: each rule is re-derived in a few lines, shown to fail, and our plugin to pass.

The names: the project's source documents (slides, the notebooks on dynamic sparse training and SparseLinear), the authors' DEEP R scripts, and
the public ports of RigL, SNFS and in-time over-parameterization.
"""

import pytest
import torch
from by_hand import connections, flat_of, sites_of
from sparsefleet_plugins.connectivity.random import RandomConnectivity
from sparsefleet_plugins.rewiring.deep_r import DeepR
from sparsefleet_plugins.rewiring.deepr_softmax import DeeprSoftmax
from sparsefleet_plugins.rewiring.grow_then_prune import GrowThenPrune
from sparsefleet_plugins.rewiring.random_regrow import RandomRegrow
from sparsefleet_plugins.rewiring.rigl import RigL
from sparsefleet_plugins.rewiring.set import SET
from torch import nn

from sparsefleet import Progress, Rng, keep_best
from sparsefleet.connections import DenseValues
from sparsefleet.nn import Sparsifier

NOW = Progress(100, 1000, 50)
STORAGES = ["masked", "csr", "fixed-fan-in"]


def small(rewirer, storage, *, lr=0.1, every=2, momentum=0.9):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    rewirer = {rewirer: {"every": every}}
    return model, Sparsifier(model, optimizer, rewirer=rewirer, density=0.4, total_steps=40, layer=storage)


def step(model, sparsifier, number):
    gen = torch.Generator().manual_seed(number)
    x, y = torch.randn(32, 20, generator=gen).double(), torch.randint(5, (32,), generator=gen)
    sparsifier.optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return float(loss.detach()), sparsifier.step()


# Counts


def test_growing_a_tenth_and_pruning_at_the_median_of_all_sites_densifies():
    """Slides, slide 11: 10 % grow, then whoever lies below the median of *all* sites goes: zeros do not lie below a median of zero."""
    weight = Rng("w").normal(10_000).view(100, 100)
    mask = Rng("m").uniform(10_000).view(100, 100) < 0.1
    conn = connections(weight, mask)
    conn.dense = DenseValues(weight, None, {})
    density = []
    for i in range(6):
        mask = mask | (Rng("grow", i).uniform(10_000).view(100, 100) < 0.1)
        size = (weight * mask).abs()
        mask = mask & ~(size < torch.kthvalue(size.view(-1), 5000).values)
        density.append(float(mask.double().mean()))
    assert density == pytest.approx([0.19, 0.27, 0.35, 0.41, 0.47, 0.50], abs=0.02)
    for i in range(6):
        keep, new = GrowThenPrune().update(conn, NOW, Rng(i), conn.nnz)
        assert int(keep.sum()) + new.shape[1] == conn.nnz


def test_regrowing_a_share_of_what_was_dropped_decays():
    """Notebook on dynamic sparse training: regrows 30 % of the 20 % that it prunes; its own 16 rewires leave 89 of 1000."""
    n = 1000
    for _ in range(16):
        n_prune = int(n * 0.2)
        absent = 100_000 - n + n_prune
        n = n - n_prune + min(int(absent * 0.3 * (n_prune / absent) + 1e-9), n_prune)
    assert n == 89
    conn = connections(Rng("w").normal(4000).view(40, 100), (torch.arange(4000) % 4 == 0).view(40, 100))
    for i in range(16):
        keep, new = SET(drop_fraction=0.2).update(conn, NOW, Rng(i), 1000)
        assert int(keep.sum()) + new.shape[1] == 1000
        assert new.shape[1] in (199, 200)  # of each sign a share, rounded down


def test_a_threshold_takes_all_who_tie():
    """The same notebook, in SET and DEEP R: ``magnitude <= kthvalue`` on equal weights takes all of them."""
    weight = torch.full((1, 20), 0.5)
    assert int((weight.abs() <= torch.kthvalue(weight.abs().view(-1), 6).values).sum()) == 20
    conn = connections(weight)
    conn.dense = DenseValues(weight.double(), torch.ones(1, 20, dtype=torch.float64), {})
    for plugin in (SET(), DeeprSoftmax(), RandomRegrow(stop=1.0)):
        n_drop = plugin.drop_count(conn, NOW)
        assert n_drop in (5, 6)
        assert keep_best(plugin.drop_score(conn), 20 - n_drop).tolist() == [True] * (20 - n_drop) + [False] * n_drop


def test_bernoulli_growth_drifts():
    """Ports of SNFS and in-time over-parameterization: ``rand < p`` grows p on average, and nnz wanders."""
    conn = connections(Rng("w").normal(900).view(30, 30), Rng("m").uniform(900).view(30, 30) < 0.2)
    drawn, exact = set(), set()
    for seed in range(20):
        absent, k = 900 - conn.nnz, 40
        drawn.add(int((Rng("bernoulli", seed).uniform(absent) < k / absent).sum()))
        exact.add(conn.random_absent(k, Rng(seed)).shape[1])
    assert len(drawn) > 5
    assert exact == {40}


def test_indices_drawn_with_replacement_are_fewer_than_asked():
    """DEEP R's scripts draw the first sites with replacement, and new ones in the sparse script too."""
    assert torch.unique(Rng("with").integers(500, 1000)).numel() < 450
    row, col = RandomConnectivity().draw((20, 50), 500, Rng(0))
    assert torch.unique(row * 50 + col).numel() == 500
    conn = connections(Rng("w").normal(1000).view(20, 50), Rng("m").uniform(1000).view(20, 50) < 0.5)
    conn.state = dict(DeepR().initial_state(conn))
    conn.weight = -conn.weight  # all cross zero
    keep, new = DeepR().update(conn, NOW, Rng(0), conn.nnz)
    assert not keep.any()
    assert len(flat_of(new, 50)) == conn.nnz


def test_the_share_applies_to_connections_once():
    """SparseLinear's dynamic mode: k = f * (1 - sparsity) * nnz, the density twice: 3 % of the connections in place of 30 %."""
    conn = connections(Rng("w").normal(2000).view(20, 100), (torch.arange(2000) % 10 == 0).view(20, 100))
    assert int(0.3 * conn.density * conn.nnz) == 6
    assert RigL().drop_count(conn, Progress(1, 100_000, 10)) == int(0.3 * conn.nnz) - 1  # of 60, just below at step 1
    assert RigL().drop_count(conn, Progress(0, 100_000, 10)) == 60


# Who goes


def test_dropping_by_magnitude_alone_is_not_set():
    """Ports of SET drop the smallest magnitudes whatever the sign: here all positive ones."""
    conn = connections([[0.1, 0.2, 0.3, -1.0, -2.0, -3.0]])
    by_magnitude = keep_best(conn.weight.abs(), 4)
    assert conn.weight[~by_magnitude].tolist() == [0.1, 0.2]
    keep, _ = SET(drop_fraction=0.34).update(conn, NOW, Rng(0), 6)
    assert conn.weight[~keep].tolist() == [0.1, -1.0]


def test_noise_on_the_drop_score_keeps_absent_sites():
    """A port of RigL adds 1e-5 * noise to ``|w * mask|`` of all sites to break ties, and then prefers absent sites to tiny connections."""
    weight = torch.zeros(1, 40, dtype=torch.float64)
    weight[0, :20] = 1e-9
    noisy = weight.abs().view(-1) + 1e-5 * Rng("noise").normal(40)
    assert int(torch.topk(noisy, 14).indices.ge(20).sum()) > 0
    conn = connections(weight, grad=torch.ones(1, 40))
    keep, _ = RigL(drop_fraction=0.6).update(conn, Progress(1, 100_000, 10), Rng(0), 20)
    assert int(keep.sum()) == 20 - RigL(drop_fraction=0.6).drop_count(conn, Progress(1, 100_000, 10))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_connection_of_weight_zero_is_a_connection(storage):
    """Ports that take ``weight != 0`` for the mask drop a connection whose weight is exactly zero, such as each one that was just grown."""
    _, sparsifier = small("rigl", storage, every=20)
    module = sparsifier.modules["0"]
    n = module.nnz
    module.write_values(torch.zeros(n, dtype=torch.float64))
    assert int((module.values() != 0).sum()) == 0
    assert module.nnz == n
    assert module.connections().nnz == n


# Where to grow


def test_the_gradient_of_the_stored_weight_is_zero_where_growing_looks():
    """Notebook and slides: forward with ``weight * mask`` and rank ``weight.grad``: exactly zero at every absent site."""
    weight = torch.randn(30, 20, dtype=torch.float64, requires_grad=True)
    mask, x = torch.rand(30, 20) < 0.3, torch.randn(16, 20, dtype=torch.float64)
    nn.functional.linear(x, weight * mask).square().sum().backward()
    assert int(torch.count_nonzero(weight.grad[~mask])) == 0
    assert bool((torch.softmax(weight.grad[~mask].abs(), 0) == 1 / int((~mask).sum())).all())  # and so uniform

    model = nn.Sequential(nn.Linear(20, 30, bias=False)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, rewirer="deepr-softmax", density=0.3, total_steps=1000, layer="masked")
    model(x).square().sum().backward()
    module = sparsifier.modules["0"]
    dense = module.weight.detach().clone().requires_grad_()
    nn.functional.linear(x, dense).square().sum().backward()
    assert torch.allclose(module.connections().dense.grad, dense.grad)
    assert int(torch.count_nonzero(module.connections().dense.grad[~module.mask])) == int((~module.mask).sum())


@pytest.mark.parametrize("storage", STORAGES)
def test_rigl_grows_at_the_largest_true_gradients(storage):
    """On every storage; the notebooks' zero gradients would give the first absent sites."""
    model, sparsifier = small("rigl", storage, every=1, momentum=0.0)
    step(model, sparsifier, 0)  # an ordinary step: the first update takes the place of the second
    module = sparsifier.modules["2"]
    before = set(module.flat_sites().tolist())
    gen = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 20, generator=gen).double(), torch.randint(5, (32,), generator=gen)
    hidden = torch.relu(model[0](x)).detach()
    dense = torch.zeros(5 * 30, dtype=torch.float64).index_put((module.flat_sites(),), module.values()).view(5, 30).requires_grad_()
    nn.functional.cross_entropy(nn.functional.linear(hidden, dense, module.bias.detach()), y).backward()
    step(model, sparsifier, 1)
    grown = set(module.flat_sites().tolist()) - before
    size = dense.grad.abs().view(5, 30)
    assert grown
    for site in grown:  # of its unit, or of the layer, nobody absent has more
        row = site // 30
        rest = [s for s in range(150) if s not in before | grown and (storage != "fixed-fan-in" or s // 30 == row)]
        assert float(size.view(-1)[site]) >= float(size.view(-1)[rest].max())


def test_softmax_of_large_gradients_leaves_too_few_sites_to_draw():
    """At ``|g|`` of 200 and T = 1 the softmax is one-hot in floating point: a draw of three has one site of positive probability."""
    grad = torch.zeros(50)
    grad[[3, 10, 20]] = torch.tensor([300.0, 190.0, 180.0])
    probability = torch.softmax(grad, 0)
    assert int((probability > 0).sum()) == 1
    conn = connections([[0.0] * 49 + [1.0]])
    conn.dense = DenseValues(torch.zeros(1, 50), grad.view(1, 50), {})
    for seed in range(20):
        assert flat_of(DeeprSoftmax().grow(conn, 3, Rng(seed)), 50) == {3, 10, 20}


def test_softmax_of_small_gradients_is_uniform_until_the_temperature_fits():
    """At ``|g|`` of 1e-3 and T = 1 the largest probability is 1.001 times the least; T is a parameter, and its page says so."""
    grad = 1e-3 * Rng("g").uniform(1000)
    probability = torch.softmax(grad, 0)
    assert float(probability.max() / probability.min()) < 1.002
    conn = connections([[0.0] * 999 + [1.0]])
    conn.dense = DenseValues(torch.zeros(1, 1000), grad.view(1, 1000), {})
    mean = {}
    for temperature in (1.0, 1e-4):
        sites = [sorted(flat_of(DeeprSoftmax(temperature=temperature).grow(conn, 100, Rng(seed)), 1000)) for seed in range(10)]
        mean[temperature] = float(grad[torch.tensor(sites)].mean())
    assert mean[1.0] < 0.55e-3
    assert mean[1e-4] > 0.8e-3
    assert "uniform" in DeeprSoftmax.cannot


# When


def test_a_new_parameter_in_forward_is_trained_by_nobody():
    """SparseLinear's dynamic mode makes a new Parameter at a rewire: the optimizer goes on with the old one, and the log freezes."""
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    before = layer.weight.detach().clone()
    layer(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["rigl", "set", "random-regrow"])
def test_training_goes_on_after_every_update(name, storage):
    model, sparsifier = small(name, storage, every=3)
    parameters, n_updates = {key: module.weight_parameter for key, module in sparsifier.modules.items()}, 0
    for number in range(12):
        before = {key: module.values().clone() for key, module in sparsifier.modules.items()}
        _, changes = step(model, sparsifier, number)
        n_updates += bool(changes)
        for key, module in sparsifier.modules.items():
            assert module.weight_parameter is parameters[key]
            assert changes or not torch.equal(module.values(), before[key])
    assert n_updates >= 3
    held = [parameter for group in sparsifier.optimizer.param_groups for parameter in group["params"]]
    assert all(any(parameter is one for one in held) for parameter in parameters.values())


@pytest.mark.parametrize("storage", STORAGES)
def test_an_update_of_rigl_takes_the_place_of_the_step(storage):
    """Most ports take the optimizer's step as well; kept weights and biases are then another's."""
    model, sparsifier = small("rigl", storage, every=2, momentum=0.0)
    for number in range(2):
        step(model, sparsifier, number)
    module = sparsifier.modules["0"]
    before, bias = dict(zip(module.flat_sites().tolist(), module.values().tolist(), strict=True)), module.bias.detach().clone()
    _, changes = step(model, sparsifier, 2)
    assert changes
    after = dict(zip(module.flat_sites().tolist(), module.values().tolist(), strict=True))
    assert all(after[site] == before[site] for site in after.keys() & before.keys())
    assert all(after[site] == 0 for site in after.keys() - before.keys())
    assert torch.equal(module.bias, bias)


def test_rewiring_ends():
    """Ports whose drop fraction has a floor of 0.005, or whose end lies beyond the run, rewire until the last step."""
    conn = connections(torch.ones(10, 100))
    for plugin in (RigL(), RandomRegrow()):
        due = [number for number in range(1001) if plugin.due(Progress(number, 1000, 50))]
        assert due[-1] < 750
        assert plugin.drop_count(conn, Progress(750, 1000, 50)) == 0
        assert plugin.drop_count(conn, Progress(1000, 1000, 50)) == 0


def test_what_is_kept_is_never_grown():
    """A site that stands in both lists would be counted once: nnz shrinks without an error."""
    conn = connections(Rng("w").normal(400).view(20, 20), Rng("m").uniform(400).view(20, 20) < 0.5, grad=torch.ones(20, 20))
    for plugin in (SET(), RigL(), RandomRegrow()):
        keep, new = plugin.update(conn, NOW, Rng(0), conn.nnz)
        assert not flat_of(new, 20) & sites_of(conn, keep)
