"""A masked Embedding: the weight is a matrix with a row per token; the padding row is zero."""

import copy
import pickle

import pytest
import torch
from compound_nets import plugin, sparse
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.nn import MaskedModule
from sparsefleet.nn.topology import Topology
from sparsefleet.plugin import Progress


def embedding(layer="masked", *, names=("0",), seed=0, **options):
    return sparse(lambda: nn.Embedding(30, 8, **options), layer, names=list(names), seed=seed)


def test_it_is_torchs_embedding_with_zeros():
    network, found = embedding(padding_idx=2)
    module, tokens = found["0"], torch.tensor([[1, 2, 3], [3, 3, 29]])
    assert module.matrix_shape == (30, 8)
    theirs = nn.Embedding(30, 8, padding_idx=2, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(module.weight)
    assert torch.equal(network(tokens), theirs(tokens))
    assert not network(tokens)[0, 1].any()
    network(tokens).pow(3).sum().backward(), theirs(tokens).pow(3).sum().backward()
    assert torch.equal(module.grad_values(), theirs.weight.grad.reshape(-1)[module.flat_sites()])
    assert not module.weight_parameter.grad[~module.mask].any()


def test_first_weights_are_standard_normal_and_the_dense_ones():
    dense, _ = sparse(lambda: nn.Embedding(3000, 10, padding_idx=0), "masked", names=[])
    _, found = sparse(lambda: nn.Embedding(3000, 10, padding_idx=0), "masked", names=["0"])
    weight, live = dense[0].weight.detach(), found["0"].mask
    assert torch.equal(found["0"].weight.detach(), weight * live)
    assert not weight[0].any()
    rest = weight[1:]
    assert abs(rest.mean()) < 4 / rest.numel() ** 0.5
    assert abs(rest.std() - 1) < 4 / (2 * rest.numel()) ** 0.5
    assert abs((rest.abs() < 1).double().mean() - 0.6827) < 0.01
    assert rest.isfinite().all()


@pytest.mark.parametrize("method", ["set", "rigl", "deep-r"])
def test_the_padding_row_is_zero_whatever_a_method_writes(method):
    network, found = embedding(padding_idx=2)
    module, rewirer = found["0"], plugin("rewirer", method)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    topology = Topology(found, optimizer, 0)
    topology.start(rewirer)
    for step in range(1, 4):
        topology.watch_absent(True)
        optimizer.zero_grad()
        network(torch.arange(30)).sin().sum().backward()
        optimizer.step()
        topology.enforce()
        topology.on_step(rewirer, 0.5, step)
        topology.rewire(rewirer, Progress(step, 100, 1))
        assert module.nnz == 72
        assert not module.weight_parameter[2].any()
        assert not network(torch.tensor([2])).any()


def test_copies_pickles_and_state_dicts_compute_the_same():
    network, _ = embedding(padding_idx=2)
    other, _ = embedding(padding_idx=2, seed=1)
    other.load_state_dict(network.state_dict())
    tokens = torch.arange(30)
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(tokens), network(tokens))


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}])
def test_what_would_get_past_the_mask_is_refused(options):
    with pytest.raises(UserError, match="past the mask"):
        embedding(**options)


def test_other_layers_do_not_store_one():
    with pytest.raises(UserError, match=r"layer 'csr' cannot store a Embedding \(0\)"):
        embedding("csr")


def test_a_masked_linear_still_has_no_padding():
    module = MaskedModule(nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.bool))
    module.write_values(torch.ones(6))
    assert bool((module.weight == 1).all())
