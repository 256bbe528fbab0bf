"""A density that a layer cannot hold, and connections that do not fit, are told when the grid is planned."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefleet.errors import InvalidGrid
from sparsefleet.grid.arms import Judge
from sparsefleet.grid.expand import Point, Skip, walk
from sparsefleet.grid.fit import Facts
from sparsefleet.grid.load import load_text
from sparsefleet.grid.totals import Counted, expanded
from sparsefleet.registry import catalog
from sparsefleet.trial.build import build_network

HEAD = """\
name: held
dataset: digits
model: {mlp: {hidden: [64, 64]}}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
control_arms: []
method: {rewirer: static}
"""


def loaded(text):
    return load_text(HEAD + text, "held.yaml", catalog=catalog())


def walked(text):
    items = list(walk(loaded(text), catalog()))
    return [item.reason for item in items if isinstance(item, Skip)], [i.spec for i in items if isinstance(i, Point) and i.arm != "dense"]


@pytest.mark.parametrize(
    ("layer", "density", "reason"),
    [
        (
            "fixed-fan-in",
            0.001,
            "whole inputs per unit, which at these widths cannot be density 0.001; the nearest that it holds is 0.0156",
        ),
        ("fixed-fan-in", 0.01, "whole inputs per unit, which at these widths cannot be density 0.01; the nearest that it holds is 0.0156"),
        # one tile of 32 x 32 in each of two layers of 64 x 64, and the whole last layer, which has fewer sites than a tile: 2688 of 8832
        (
            "{block: {size: 32}}",
            0.001,
            "whole blocks of 32 x 32, which at these widths cannot be density 0.001; the nearest that it holds is 0.304",
        ),
        (
            "{block: {size: 100}}",
            0.2,
            "whole blocks of 100 x 100, which at these widths cannot be density 0.2; it would connect everything",
        ),
    ],
)
def test_a_density_far_from_what_the_layer_holds_is_skipped(layer, density, reason):
    skips, specs = walked(f"layer: {layer}\ndensity: {density}\n")
    assert [skip.partition(" holds ")[2] for skip in skips] == [reason]
    assert specs == []


@pytest.mark.parametrize("layer", ["fixed-fan-in", "block", "{block: {size: 32}}"])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.4])
def test_the_nearest_density_is_one_that_the_layer_holds(layer, density):
    """What runs comes out within a tenth of what was asked, and what is named instead runs."""
    skips, specs = walked(f"layer: {layer}\ndensity: {density}\n")
    if skips:
        density = float(skips[0].rsplit(" ", 1)[1])
        skips, specs = walked(f"layer: {layer}\ndensity: {density}\n")
        assert skips == []
    network = build_network(specs[0])
    realised = sum(module.nnz for module in network.sparse.values()) / 8832
    assert realised == pytest.approx(density, rel=0.13 if "block" in layer else 0.1)  # tiles at the ragged edge come out smaller by chance


def test_large_grids_count_the_same():
    text = "axes:\n  layer: [fixed-fan-in, csr, block, masked]\n  density: [1e-6, 1e-4, 3e-4, 0.001, 0.01, 0.02, 0.1]\n"
    grid = loaded(text)
    judge = Judge(grid, Facts(catalog()))
    small, large = expanded(grid, judge), Counted(grid, judge).count()
    assert small.skipped == large.skipped
    assert sum("cannot be density" in reason for reason in small.skipped) >= 4
    assert small.skipped["density 1e-06 leaves 0 connections for 3 layers; raise the density"] == 4
    assert (small.points, small.own, small.twins) == (large.points, large.own, large.twins)


@pytest.mark.parametrize("layer", ["csr", "auto"])
def test_a_density_without_a_connection_for_each_layer_is_a_mistake_of_the_file(layer):
    with pytest.raises(InvalidGrid, match=r"held\.yaml:9 density: no point can run: density 1e-09 leaves 0 connections for 3 layers"):
        loaded(f"layer: {layer}\ndensity: 1e-9\n")


def given(tmp_path, name="ok.npy", n=819, rest="layer: fc2, others: random"):
    path = tmp_path / name
    flat = np.random.default_rng(0).choice(64 * 64, n, replace=False)
    if path.suffix == ".npy":
        np.save(path, np.stack([flat // 64, flat % 64]))
    return f"layer: csr\ndensity: 0.2\nconnectivity: {{user: {{file: {path}{', ' if rest else ''}{rest}}}}}\n"


def test_given_connections_that_fit_run(tmp_path):
    skips, specs = walked(given(tmp_path))
    assert (skips, len(specs)) == ([], 1)


def test_a_layer_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(InvalidGrid, match=r"held\.yaml:10 connectivity: .*: layer names fc9; the model has fc1, fc2, fc3$"):
        loaded(given(tmp_path, rest="layer: fc9, others: random"))
    (tmp_path / "named.csv").write_text("layer,row,col\nhidden,1,2\nfc1,1,2\n")
    with pytest.raises(InvalidGrid, match=r"the file names hidden; the model has fc1, fc2, fc3$"):
        loaded(given(tmp_path, "named.csv", rest="others: random"))
    with pytest.raises(InvalidGrid, match=r"layer names fc2; the model has fc1, fc3$"):
        load_text(HEAD.replace("static}", "static, keep_dense: [fc2]}") + given(tmp_path), "held.yaml", catalog=catalog())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.npy", None, "absent.npy is not there; give the full path, or one relative to --data"),
        ("empty.npy", b"", "empty.npy cannot be read as .npy; "),
        ("bad.safetensors", b"abc", "bad.safetensors cannot be read as .safetensors; "),
        ("ok.txt", b"1 2", "connections are read from .safetensors, .npy, .csv"),
        ("hdr.csv", b"row,col\n", "hdr.csv holds no connection"),
        ("out.csv", b"row,col\n70,1\n1,1\n1,1\n", "has 3 connections for fc2; density 0.2 asks for 819; density: 0.0007324"),
    ],
)
def test_files_that_are_of_no_use_are_a_mistake(tmp_path, name, content, reason):
    text = given(tmp_path).replace("ok.npy", name)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidGrid) as caught:
        loaded(text)
    assert "held.yaml:10 connectivity: no point can run: " in str(caught.value)
    assert reason in str(caught.value)


def test_no_fix_is_one_that_a_grid_refuses(tmp_path):
    with pytest.raises(
        InvalidGrid, match=r"819 connections for layer 'fc3', which has 640 sites; layer: NAME says which layer they are for$"
    ):
        loaded(given(tmp_path, rest=""))
    with pytest.raises(InvalidGrid, match=r"8,832 connections for fc1, fc2, fc3; density 0\.2 asks for 1,766; fewer than all sites$"):
        loaded("layer: csr\ndensity: 0.2\nconnectivity: {fixed-fan-in: {fan_in: 10000}}\n")
    with pytest.raises(InvalidGrid, match=r"1,104 connections for fc1, fc2, fc3; density 0\.2 asks for 1,766; density: 0\.125$"):
        loaded("layer: csr\ndensity: 0.2\nconnectivity: {fixed-fan-in: {fan_in: 8}}\n")
    assert walked("layer: csr\ndensity: 0.125\nconnectivity: {fixed-fan-in: {fan_in: 8}}\n")[0] == []


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("fixed-fan-in", "connectivity 'user' gives fc1 a fan-in of 5 to 21"),
        ("block", "connectivity 'user' gives fc1 819 connections that lie in 247"),
    ],
)
def test_given_connections_that_the_layer_cannot_hold_are_named(tmp_path, layer, reason):
    with pytest.raises(InvalidGrid, match=f"{reason}.*; layer: csr$"):
        loaded(given(tmp_path).replace("layer: csr", f"layer: {layer}"))
