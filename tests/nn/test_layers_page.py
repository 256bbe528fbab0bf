"""What docs/layers.md shows runs, and says what is so."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsefleet.nn import BlockLinear, CsrLinear, FixedFanInLinear, MaskedLinear, QuantisedLinear, TwoFourLinear
from sparsefleet.registry import catalog
from sparsefleet.testing.layer_case import TOLERANCE

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()


@pytest.fixture(autouse=True)
def _fast_path():
    """As it was: an example turns it off."""
    before = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def test_the_examples_run(capsys):
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out
    assert "CsrLinear(in_features=10, out_features=20, bias=True, nnz=20, density=0.1)" in out
    assert "nnz=20, layout=torch.sparse_coo" in out
    assert {name: sites.shape for name, sites in names["masks"].items()} == {"0": (2, 256), "3": (2, 52)}
    assert [type(module).__name__ for module in names["model"]] == ["CsrLinear", "ReLU", "CsrLinear"]
    assert out.endswith("True\n")  # few levels; no later example prints
    assert names["output"].shape == (8, 20, 256)


def test_every_layer_of_the_catalogue_is_on_the_page():
    for entry in catalog().entries:
        if entry.family == "layer" and entry.distribution == "sparsefleet" and entry.name != "dense":
            assert f"| `{entry.name}` |" in PAGE


def test_the_tolerances_are_those_that_are_tested():
    assert {torch.float64: 1e-12, torch.float32: 2e-5} == TOLERANCE
    assert "**1e-12 in float64** and **2e-5 in float32**" in PAGE


@pytest.mark.parametrize("layer", [FixedFanInLinear, CsrLinear, BlockLinear, MaskedLinear, QuantisedLinear, TwoFourLinear])
def test_the_density_stands_third_and_has_the_default_of_the_page(layer):
    third = list(inspect.signature(layer).parameters.values())[2]
    assert (third.name, third.default) == ("density", 0.5 if layer is TwoFourLinear else 0.1)


def test_the_fast_path_of_a_transformer_is_what_fails():
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    encoder.linear1 = CsrLinear(32, 64)
    x = torch.randn(2, 5, 32)
    torch.backends.mha.set_fastpath_enabled(True)
    with torch.no_grad(), pytest.raises(NotImplementedError):
        encoder(x)
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        assert encoder(x).shape == x.shape


@pytest.mark.parametrize(("layer", "is_view"), [(FixedFanInLinear, True), (CsrLinear, True), (BlockLinear, False)])
def test_which_weight_shares_the_memory_of_its_values(layer, is_view):
    made = layer(16, 32, 0.25, seed=0)
    before = made.weight
    assert before.layout == torch.sparse_coo
    assert not before.requires_grad
    with torch.no_grad():
        made.values_.add_(1)
    assert torch.equal(before.to_dense(), made.weight.to_dense()) is is_view


def test_the_masked_weight_is_dense_and_has_a_gradient():
    made = MaskedLinear(16, 32, 0.25, seed=0)
    assert not hasattr(made, "values_")
    assert made.weight.layout == torch.strided
    assert made.weight.requires_grad


@pytest.mark.parametrize("loaded_after_a_step", [False, True])
def test_another_number_of_connections_comes_before_the_first_step_only(loaded_after_a_step):
    layer, other, x = CsrLinear(16, 32, 0.25, seed=0), CsrLinear(16, 32, 0.5, seed=1), torch.randn(4, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()

    if loaded_after_a_step:
        step()
    layer.load_state_dict(other.state_dict())
    if loaded_after_a_step:
        with pytest.raises(RuntimeError, match="size of tensor"):
            step()
    else:
        step()
        assert layer.values_.shape == other.values_.shape


@pytest.mark.slow
@pytest.mark.parametrize("layer", [FixedFanInLinear, CsrLinear, MaskedLinear, BlockLinear])
def test_where_the_compiled_graph_is_whole(layer):
    torch.compiler.reset()
    made, x = layer(16, 32, 0.25, seed=0), torch.randn(4, 16)
    wanted = made(x)
    assert torch.equal(torch.compile(made, backend="aot_eager")(x), wanted)
    torch.compiler.reset()
    whole = torch.compile(made, backend="aot_eager", fullgraph=True)
    if layer is BlockLinear:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            whole(x)
    else:
        assert torch.equal(whole(x), wanted)
