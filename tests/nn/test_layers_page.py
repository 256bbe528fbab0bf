"""What docs/layers.md shows runs, and says what is so."""

import re
from pathlib import Path

import torch

from sparsefleet.registry import catalog
from sparsefleet.testing.layer import _TOLERANCE

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()


def test_the_examples_run(capsys):
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out
    assert "CsrLinear(in_features=10, out_features=20, bias=True, nnz=20, density=0.1)" in out
    assert "nnz=20, layout=torch.sparse_coo" in out
    assert {name: sites.shape for name, sites in names["masks"].items()} == {"0": (2, 256), "3": (2, 52)}
    assert [type(module).__name__ for module in names["model"]] == ["CsrLinear", "ReLU", "CsrLinear"]


def test_every_layer_of_the_catalogue_is_on_the_page():
    for entry in catalog().entries:
        if entry.family == "layer" and entry.distribution == "sparsefleet" and entry.name != "dense":
            assert f"| `{entry.name}` |" in PAGE


def test_the_tolerances_are_those_that_are_tested():
    assert {torch.float64: 1e-12, torch.float32: 2e-5} == _TOLERANCE
    assert "**1e-12 in float64** and **2e-5 in float32**" in PAGE
