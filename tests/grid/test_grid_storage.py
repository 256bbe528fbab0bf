"""What a layer cannot hold is skipped when the grid is planned, with a reason."""

import pytest
import torch
from grid_plugins import walked

from sparsefleet.errors import UserError
from sparsefleet.grid.expand import Skip
from sparsefleet.grid.storage import storage_misfit
from sparsefleet.nn import Sparsifier
from sparsefleet.plugin import Rewirer
from sparsefleet.registry import facts_of


def found(layer, method, connectivity="random", gpus=0):
    items = walked(layer=layer, method=method, connectivity=connectivity, resources=f"{{cpus: 1, gpus: {gpus}}}")
    skips = [item.reason for item in items if isinstance(item, Skip)]
    return skips[0] if skips else {item.spec.layer.name for item in items if item.arm == "sparse"}


def test_what_moves_connections_between_layers_keeps_no_constant_fan_in():
    assert found("csr", "{rewirer: dsr}") == {"csr"}
    reason = "dsr moves connections between layers; layer=fixed-fan-in holds equally many inputs for every output"
    assert found("fixed-fan-in", "{rewirer: dsr}") == reason
    model = torch.nn.Linear(8, 8)
    with pytest.raises(UserError, match="dsr moves connections between layers; layer 'fixed-fan-in' holds a constant fan-in"):
        Sparsifier(model, torch.optim.SGD(model.parameters()), rewirer="dsr", layer="fixed-fan-in", density=0.5, total_steps=500)


def test_what_takes_units_away_keeps_no_constant_fan_in():
    assert found("csr", "{rewirer: srigl}") == {"csr"}
    reason = (
        "srigl takes all connections from weak units; layer=fixed-fan-in holds equally many inputs for every output (gamma: 0 takes none)"
    )
    assert found("fixed-fan-in", "{rewirer: srigl}") == reason
    assert found("fixed-fan-in", "{rewirer: {srigl: {gamma: 0}}}") == {"fixed-fan-in"}


def test_what_keeps_no_constant_fan_in_says_so():
    class Own(Rewirer):
        name = "own"
        fits_fan_in = False

    state = {"layer": {"fixed-fan-in": {}}, "method": {"rewirer": {"own": {}}}}
    reason = "own does not keep a constant fan-in; layer=fixed-fan-in holds equally many inputs for every output"
    assert storage_misfit(state, {"topology": "constant-fan-in"}, facts_of(Own), {}) == reason
    assert storage_misfit(state, {"topology": "free"}, facts_of(Own), {}) is None
    assert storage_misfit(state, {"topology": "constant-fan-in"}, facts_of(Rewirer), {}) is None
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(UserError, match="own does not keep a constant fan-in"):
        Sparsifier(model, torch.optim.SGD(model.parameters()), rewirer=Own(), layer="fixed-fan-in", density=0.5, total_steps=500)


def test_n_of_m_is_the_density_n_over_m_in_every_layer():
    assert found("masked", "{rewirer: sr-ste}") == "sr-ste keeps 2 of every 4 inputs, which is density 0.5, not 0.25"
    assert found("masked", "{rewirer: {sr-ste: {n: 1}}}") == {"masked"}
    reason = "sr-ste keeps 1 of every 4 inputs in every layer, which distribution=erk does not give"
    assert found("masked", "{rewirer: {sr-ste: {n: 1}}, distribution: erk}") == reason
    assert "needs values at absent sites, which layer=csr does not store" in found("csr", "{rewirer: {sr-ste: {n: 1}}}")
    assert "holds n:m, which set does not keep" in found("two-four", "{rewirer: set}", "random", 1)
    kept = found("two-four", "{rewirer: {sr-ste: {n: 1}}, keep_dense: [first, last]}", "random", 1)
    assert "needs values at absent sites, which layer=two-four does not store" in kept


@pytest.mark.parametrize("layer", ["csr", "fixed-fan-in", "block", "masked"])
@pytest.mark.parametrize("method", ["{rewirer: set}", "{rewirer: rigl}", "{rewirer: deep-r}", "{pruner: magnitude}", "{pruner: random}"])
def test_every_method_runs_on_every_layer_or_is_skipped(layer, method):
    got = found(layer, method)
    if layer == "block" and "deep-r" in method:
        assert got == "deep-r decides about each connection by itself; layer=block holds whole blocks"
    else:
        assert got == {layer}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ("fixed-fan-in", "{pruner: magnitude, pattern: row}"),
            "layer=fixed-fan-in holds topology constant-fan-in, which pattern row does not give",
        ),
        (
            ("fixed-fan-in", "{rewirer: set}", "rows"),
            "connectivity=rows draws whole rows, layer=fixed-fan-in holds equally many inputs for every output",
        ),
        (("{block: {size: 8}}", "{rewirer: set}", "blocks"), "connectivity=blocks draws blocks of 4, layer=block holds blocks of 8"),
        (
            ("block", "{pruner: magnitude, pattern: {block: {rows: 4, cols: 8}}}"),
            "layer=block holds blocks of 4, which pattern block does not give",
        ),
        (("block", "{pruner: magnitude, pattern: channel}"), "layer=block holds topology block, which pattern channel does not give"),
        (("two-four", "{rewirer: set}"), "layer=two-four runs on cuda; this trial asks for no GPU"),
        (("two-four", "{rewirer: set}", "random", 1), "layer=two-four holds n:m, which set does not keep"),
        (("two-four", "{pruner: magnitude}", "random", 1), "layer=two-four holds topology n:m, which pattern unstructured does not give"),
        (
            ("two-four", "{pruner: magnitude, pattern: {n:m: {n: 1, m: 4}}}", "random", 1),
            "layer=two-four holds 2:4, the pattern is 1:4",
        ),
        (
            ("two-four", "{pruner: magnitude, pattern: n:m}", "random", 1),
            "layer=two-four needs widths that are multiples of 64, and there is 10 (keep_dense leaves first or last dense)",
        ),
    ],
)
def test_contradictions_are_named(arguments, reason):
    assert found(*arguments) == reason


@pytest.mark.parametrize(
    "arguments",
    [
        ("fixed-fan-in", "{pruner: magnitude, pattern: n:m}"),
        ("block", "{pruner: magnitude, pattern: block}"),
        ("block", "{rewirer: set}", "blocks"),
        ("{block: {size: 8}}", "{rewirer: set}", "rows"),
        ("two-four", "{pruner: magnitude, pattern: n:m, keep_dense: [last]}", "random", 1),
    ],
)
def test_what_fits_runs(arguments):
    assert isinstance(found(*arguments), set)


def test_a_missing_package_is_a_reason(monkeypatch):
    monkeypatch.setattr("sparsefleet.grid.storage.importlib.util.find_spec", lambda name: None)
    assert found("torch-sparse", "{rewirer: set}") == "layer=torch-sparse needs the package torch-sparse, which is not installed"


def test_what_holds_on_every_machine_is_said_before_a_missing_package(monkeypatch):
    monkeypatch.setattr("sparsefleet.grid.storage.importlib.util.find_spec", lambda name: None)
    assert "needs values at absent sites" in found("torch-sparse", "{rewirer: snfs}")
