"""Sparsifier and torch's compound modules: their gates become sparse, the optimizer's slots follow, and a refusal leaves all as it was."""

import copy

import pytest
import torch
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.nn import LSTM, CsrLinear, MultiheadAttention, Sparsifier


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, tokens):
        x, _ = self.lstm(self.embedding(tokens))
        return self.fc(self.attention(x, x, x)[0].mean(1))


def trained(make):
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    step(model, optimizer)
    optimizer.step()
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(5))).square().mean().backward()


OPTIMIZERS = [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.RMSprop(p, 0.01)]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_at_full_density_the_training_goes_on_as_if_nothing_had_happened(make):
    """The slots of every gate are the rows of torch's: with all connections there, each weight moves as it would have."""
    model, optimizer = trained(make)
    torch_model = copy.deepcopy(model)
    torch_optimizer = make(torch_model.parameters())
    torch_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    sparsifier = Sparsifier(model, optimizer, rewirer="static", layer="csr", density=1.0, total_steps=3)
    names = [f"lstm.layer0.{part}.{gate}" for part in ("from_input", "from_hidden") for gate in ("input", "forget", "cell", "output")]
    assert list(sparsifier.modules) == [*names, *(f"attention.{name}" for name in ("query", "key", "value", "out")), "fc"]
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    for _ in range(3):
        step(model, optimizer)
        sparsifier.step()
        step(torch_model, torch_optimizer)
        torch_optimizer.step()
    tokens = torch.arange(20).view(4, 5)
    torch.testing.assert_close(model(tokens), torch_model(tokens), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.embedding.weight, torch_model.embedding.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [{"rewirer": {"rigl": {"every": 1}}}, {"rewirer": "set", "steps_per_epoch": 1}, {"pruner": "magnitude"}])
def test_methods_work_per_gate(method):
    model, optimizer = trained(torch.optim.Adam)
    sparsifier = Sparsifier(model, optimizer, layer="csr", density=0.25, total_steps=8, **method)
    before = sparsifier.masks()
    for _ in range(8):
        step(model, optimizer)
        sparsifier.step()
    sparsifier.finish()
    after = sparsifier.masks()
    assert all(isinstance(module, CsrLinear) for module in sparsifier.modules.values())
    assert [module.nnz for module in sparsifier.modules.values()] == [24] * 4 + [36] * 8 + [9]
    if "rewirer" in method:
        assert all(not torch.equal(before[name], after[name]) for name in before)


def test_what_is_named_stays_dense():
    model, optimizer = trained(torch.optim.Adam)
    sparsifier = Sparsifier(
        model, optimizer, rewirer="set", density=0.25, total_steps=8, keep_dense=["attention", "lstm.layer0.from_input.forget"]
    )
    assert type(model.attention) is nn.MultiheadAttention
    assert type(model.lstm) is LSTM
    assert type(model.lstm.layer0.from_input.forget) is nn.Linear
    assert len(sparsifier.modules) == 7 + 1
    with pytest.raises(UserError, match=r"keep_dense names 'lstm\.layer0\.forget'"):
        Sparsifier(Net(), optimizer, rewirer="set", density=0.25, total_steps=8, keep_dense=["lstm.layer0.forget"])


def test_a_refusal_leaves_the_model_and_the_optimizer_as_they_were():
    model, optimizer = trained(torch.optim.Adam)
    parts, state = dict(model.named_modules()), dict(optimizer.state)
    params = [list(group["params"]) for group in optimizer.param_groups]
    for hooked in (model.fc, model.lstm):
        handle = hooked.register_forward_hook(lambda *_: None)
        with pytest.raises(UserError, match="has hooks"):
            Sparsifier(model, optimizer, rewirer="set", density=0.25, total_steps=8)
        handle.remove()
    assert dict(model.named_modules()) == parts
    assert [list(group["params"]) for group in optimizer.param_groups] == params
    assert dict(optimizer.state) == state
    model.fc.weight = nn.Parameter(model.fc.weight.detach())  # not the optimizer's: fine, others are
    assert isinstance(Sparsifier(model, optimizer, rewirer="set", density=0.25, total_steps=8).model.attention, MultiheadAttention)


def test_a_model_that_is_itself_one_is_refused():
    lstm = nn.LSTM(4, 4)
    with pytest.raises(UserError, match="the model is itself a LSTM"):
        Sparsifier(lstm, torch.optim.Adam(lstm.parameters()), rewirer="set", density=0.25, total_steps=8)
