"""What a Sparsifier is told and cannot mean: one sentence, and the model as it was."""

import copy

import pytest
import torch
from torch import nn

from sparsefleet.errors import UserError
from sparsefleet.nn import Sparsifier
from sparsefleet.registry import Registry
from sparsefleet.sparsity.vocabulary import Block, NOfM


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))


def sparsified(model=None, optimizer=None, **options):
    model = model or net()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    defaults = {"density": 0.3, "total_steps": 40, "steps_per_epoch": 10}
    method = {} if "pruner" in options or "rewirer" in options else {"rewirer": "set"}
    return Sparsifier(model, optimizer, **{**defaults, **method, **options})


BAD = {
    "density-2": ({"density": 2}, r"density must be in \(0, 1\], got 2"),
    "density-nan": ({"density": float("nan")}, r"density must be in \(0, 1\], got nan"),
    "density-text": ({"density": "0.1"}, r"density must be in \(0, 1\], got '0\.1'"),
    "steps-text": ({"total_steps": "x"}, "total_steps must be a whole number, at least 1, got 'x'"),
    "steps-none": ({"total_steps": 0}, "total_steps must be a whole number, at least 1, got 0"),
    "epoch": ({"steps_per_epoch": -5}, "steps_per_epoch must be a whole number, at least 1, got -5"),
    "distribution": ({"distribution": "foo"}, "distribution must be one of uniform, er, erk, global, got 'foo'"),
    "global": ({"distribution": "global"}, "a rewirer has none"),
    "pattern-text": ({"pruner": "magnitude", "pattern": "block"}, r"pattern must be one of .*Block\(\.\.\.\).*, got 'block'"),
    "pattern-rewirer": ({"pattern": Block()}, "a pattern belongs to a pruner"),
    "schedule-text": ({"pruner": "magnitude", "schedule": "cubic"}, r"schedule must be one of .*Cubic\(\.\.\.\).*, got 'cubic'"),
    "dense-name": ({"keep_dense": ["fc9"]}, "keep_dense names 'fc9'; the model has 0, 1, 2"),
    "dense-text": ({"keep_dense": "0"}, "keep_dense must be a list of module names, got '0'"),
    "class": ({"rewirer": Registry().plugin_class("rewirer", "set")}, "rewirer must be a name,"),
    "family": ({"rewirer": Registry().plugin_class("pruner", "magnitude")()}, "rewirer must be a name,"),
    "parameter": ({"rewirer": {"set": {"drop_fraction": 3}}}, "rewirer 'set': drop_fraction: "),
    "two": ({"rewirer": {"set": {}, "rigl": {}}}, "rewirer must be a name,"),
    "user": ({"connectivity": "user"}, "connectivity 'user': "),
    "end-dense": ({"pruner": "magnitude", "layer": "dense"}, "layer 'dense' stores every weight"),
    "end-two-four": ({"pruner": "magnitude", "layer": "two-four"}, "layer 'two-four' holds 2 of every 4 inputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused_and_changes_nothing(name):
    options, message = BAD[name]
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        sparsified(model, **options)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": None}, "set acts at the end of every epoch but the last, which never comes in 40 steps"),
        ({"rewirer": "rigl"}, "rigl acts every 100 steps, which never comes in 40 steps"),
    ],
)
def test_a_rewirer_that_never_acts_says_so(options, message):
    with pytest.warns(UserWarning, match=message):
        sparsified(**options)


def test_an_optimizer_that_does_not_fit_is_refused():
    other = torch.optim.SGD(net().parameters(), 0.1)
    with pytest.raises(UserError, match="the optimizer holds none of the weights"):
        sparsified(net(), other)
    model = net()
    with pytest.raises(UserError, match="LBFGS takes a closure"):
        sparsified(model, torch.optim.LBFGS(model.parameters()))


def test_what_the_fixes_say_works():
    assert sparsified(rewirer={"rigl": {"every": 4, "drop_fraction": 0.2}}).rewirer.every == 4
    assert sparsified(rewirer="static", steps_per_epoch=None).rewirer.name == "static"
    assert sparsified(rewirer="deep-r", steps_per_epoch=None).rewirer.name == "deep-r"
    assert sparsified(pruner="magnitude", layer="two-four", pattern=NOfM(n=2, m=4), density=0.5).layer.name == "two-four"
    assert sparsified(keep_dense=["0"]).modules.keys() == {"2"}
