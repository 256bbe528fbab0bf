"""Pictures: what a pixel, a bar or a label says, on layers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparsefleet.report.pictures.accuracy import accuracy, lines
from sparsefleet.report.pictures.convolutions import channel_magnitudes, convolutions, kernel_means
from sparsefleet.report.pictures.curves import averaged, curves, density_line
from sparsefleet.report.pictures.draw import trial_pictures
from sparsefleet.report.pictures.evolution import chosen, difference, evolution, sides
from sparsefleet.report.pictures.heat_maps import cell_means
from sparsefleet.report.pictures.histograms import histograms, tiny_shares
from sparsefleet.report.pictures.masks import corner, masks, patterns
from sparsefleet.report.pictures.style import ADDED, KEPT, REMOVED, png, share
from sparsefleet.report.pictures.trial import LayerWeights, TrialData, read_trial
from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.trial.masks import LayerMask
from sparsefleet.trial.run import run_trial


def mask(shape, *flat):
    return LayerMask(shape, torch.tensor(flat, dtype=torch.int64))


def rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def test_the_difference_map_is_red_where_removed_and_blue_where_added():
    before, after = mask((2, 3), 0, 1, 5), mask((2, 3), 1, 3, 5)
    kept, removed, added = sides(before, after)
    assert (kept.tolist(), removed.tolist(), added.tolist()) == ([1, 5], [0], [3])
    picture = difference(before, after)
    assert picture[0, 0].tolist() == pytest.approx(rgb(REMOVED))
    assert picture[1, 0].tolist() == pytest.approx(rgb(ADDED))
    assert picture[0, 1].tolist() == picture[1, 2].tolist() == pytest.approx(rgb(KEPT))
    assert picture[0, 2].tolist() == picture[1, 1].tolist() == [1.0, 1.0, 1.0]
    red, blue = rgb(REMOVED), rgb(ADDED)
    assert red[0] > red[2] and blue[2] > blue[0]


def test_the_drawn_difference_map_has_those_colours(tmp_path):
    before, after = mask((2, 3), 0, 1, 5), mask((2, 3), 1, 3, 5)
    trial = TrialData(tmp_path, {}, {"spec_id": "x"}, "a trial")
    trial.__dict__.update(masks={"fc": after}, steps={0: {"fc": before}, 10: {"fc": after}})
    figure = evolution(trial)
    assert len(figure.axes) == 3
    (drawn,) = figure.axes[-1].get_images()
    assert drawn.get_array()[0, 0].tolist() == pytest.approx(rgb(REMOVED))
    assert "1 removed (red)" in figure.axes[-1].get_title()
    assert "1 added (blue), 2 kept" in figure.axes[-1].get_title()


def test_a_large_layer_mixes_the_colours_of_a_cell():
    shape = (512, 512)
    rows = torch.arange(512)
    before, after = LayerMask(shape, rows * 512), LayerMask(shape, rows * 512 + 511)
    picture = difference(before, after)
    assert picture.shape == (256, 256, 3)
    assert picture[:, 0].mean(0).tolist() == pytest.approx(rgb(REMOVED))
    assert picture[:, 255].mean(0).tolist() == pytest.approx(rgb(ADDED))
    assert bool((picture[:, 1:255] == 1.0).all())


def test_the_corner_shows_the_first_sites_one_by_one():
    seen = corner(mask((100, 200), 0, 63, 64, 200 + 5, 63 * 200 + 63, 64 * 200))
    assert seen.shape == (64, 64)
    assert torch.nonzero(seen).tolist() == [[0, 0], [0, 63], [1, 5], [63, 63]]
    assert corner(mask((10, 3, 2, 2), 13)).shape == (10, 12)


def test_a_million_units_are_drawn_in_memory_of_cells_and_connections(tmp_path):
    n, nnz = 1_000_000, 300_000
    flat = torch.randint(0, n * n, (nnz,), generator=torch.Generator().manual_seed(0)).unique()
    trial = TrialData(tmp_path, {}, {"spec_id": "x"}, "wide")
    trial.__dict__.update(masks={"fc": LayerMask((n, n), flat)}, steps={})
    png(masks(trial))  # the fonts are loaded
    assert peak_bytes(lambda: png(patterns([trial]))) < 200 << 20
    layer = LayerWeights((n, n), flat, torch.randn(flat.numel()))
    assert cell_means(layer).shape == (128, 128)


def test_cells_of_a_heat_map_are_means_of_their_connections():
    exact = LayerWeights((2, 2), torch.tensor([0, 3]), torch.tensor([-1.0, 2.0]))
    assert cell_means(exact).tolist() == [[-1.0, 0.0], [0.0, 2.0]]
    wide = LayerWeights((1, 256), torch.tensor([0, 1, 5]), torch.tensor([1.0, 3.0, -4.0]))
    assert cell_means(wide)[0, :4].tolist() == [2.0, 0.0, -4.0, 0.0]


def test_tiny_weights_are_counted_of_the_connections_and_of_all_sites():
    layer = LayerWeights((2, 5), torch.tensor([0, 3, 4, 7]), torch.tensor([0.05, -0.0999, 0.1, -2.0]))
    of_sites, of_connections = tiny_shares(layer)
    assert of_connections == 2 / 4
    assert of_sites == (2 + 6) / 10
    dense = LayerWeights((1, 4), None, torch.tensor([0.05, 0.2, 0.3, 0.4]))
    assert tiny_shares(dense) == (0.25, 0.25)


def test_the_histogram_says_those_shares_and_counts_every_connection(tmp_path):
    trial = TrialData(tmp_path, {}, {"spec_id": "x"}, "a trial")
    layer = LayerWeights((2, 5), torch.tensor([0, 3, 4, 7]), torch.tensor([0.05, -0.0999, 0.1, -2.0]))
    trial.__dict__.update(weights={"fc": layer})
    (axes,) = histograms(trial).axes
    assert sum(bar.get_height() for bar in axes.patches) == 4
    (said,) = [text.get_text() for text in axes.texts]
    assert said == "|w| < 0.1:\n50 % of connections\n80 % of sites"


def test_kernels_and_channels_of_a_convolution():
    """Two outputs, two inputs, 1 x 2 kernels: output 1 has no connection."""
    layer = LayerWeights((2, 2, 1, 2), torch.tensor([0, 1, 2]), torch.tensor([1.0, -2.0, -5.0]))
    assert kernel_means(layer).tolist() == [[[3.0, 1.0]], [[0.0, 0.0]]]
    assert channel_magnitudes(layer).tolist() == [8.0, 0.0]


def test_a_convolution_marks_the_channels_that_are_gone(tmp_path):
    trial = TrialData(tmp_path, {}, {"spec_id": "x"}, "a trial")
    layer = LayerWeights((2, 2, 1, 2), torch.tensor([0, 1, 2]), torch.tensor([1.0, -2.0, -5.0]))
    trial.__dict__.update(weights={"fc": LayerWeights((1, 1), None, torch.ones(1)), "conv": layer})
    figure = convolutions(trial)
    bars = next(axes for axes in figure.axes if axes.get_xlabel() == "output channel")
    assert [bar.get_height() for bar in bars.patches] == [8.0, 0.0]
    assert bars.get_legend().get_texts()[0].get_text() == "without connections: 1"


def test_steps_are_thinned_evenly_and_keep_both_ends():
    assert chosen([0, 5, 9], 11) == [0, 5, 9]
    thin = chosen(list(range(0, 1000, 10)), 11)
    assert (len(thin), thin[0], thin[-1]) == (11, 0, 990)


def test_a_long_loss_curve_becomes_means_of_neighbours():
    steps, values = averaged(list(range(1, 121)), [float(i) for i in range(1, 121)])
    assert (len(steps), steps[:2], values[:2]) == (60, [2, 4], [1.5, 3.5])
    assert averaged([1, 2, 3], [3.0, 2.0, 1.0]) == ([1, 2, 3], [3.0, 2.0, 1.0])


def test_the_density_line_begins_where_the_net_began():
    counts = {"total_weights_prunable": 100, "density_realised": 0.2}
    record = {"curves": {"density": {"steps": [5, 9], "values": [0.5, 0.2]}, "nnz": {"steps": [0], "values": [100.0]}}, "counts": counts}
    assert density_line({**record, "accuracy": {"steps": 20}}) == ([0, 5, 9, 20], [1.0, 0.5, 0.2, 0.2])
    still = {"curves": {}, "counts": counts, "accuracy": {"steps": 20}}
    assert density_line(still) == ([0, 20], [0.2, 0.2])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 %"), (1.0, "100 %"), (0.9, "90 %"), (0.9995, "99.95 %"), (0.012, "1.2 %"), (0.99999, "99.999 %")]
)
def test_shares_that_differ_read_differently(value, text):
    assert share(value) == text


def row(method, density, accuracy_, ci=None, arm="sparse", **spec):
    return {
        "arm": arm,
        "method": method,
        "variant": "",
        "layer": "csr",
        "dataset": "digits",
        "model": "mlp",
        "metric": "top1",
        "seeds": 3,
        "dataset_params": {},
        "model_params": {},
        "density_asked": density,
        "density_realised": density,
        "accuracy": accuracy_,
        "accuracy_ci": ci,
        "spec": {"seed": 0, "density": density, **spec},
    }


def test_rows_that_differ_in_more_than_density_are_lines_of_their_own():
    random = {"connectivity": {"name": "random", "params": {}}}
    small = {"connectivity": {"name": "small-world", "params": {"exponent": 2.0}}}
    found = lines(
        [
            row("set", 0.1, 0.9, **random),
            row("set", 0.2, 0.95, **random),
            row("set", 0.1, 0.8, **small),
            row("dense", 1.0, 0.97, arm="dense"),
        ]
    )
    assert {name: [r["accuracy"] for r in line] for name, line in found.items()} == {
        "set, connectivity random": [0.95, 0.9],
        "set, connectivity small-world, exponent 2.0": [0.8],
    }


def test_the_levels_of_a_lottery_are_one_line():
    def level(number, end, arm="sparse"):
        rewind = {"what": "weights", "to": 0.0, "level": number, "levels": 3}
        of = f"level {number} of 3" if arm == "sparse" else f"of magnitude+lottery, level {number} of 3"
        method = {"pruner": {"name": "magnitude"}, "rewind": rewind} if arm == "sparse" else {"rewirer": {"name": "static"}, "rewind": None}
        found = row("magnitude+lottery", end ** (number / 3), 1 - number / 100, arm=arm)
        return {**found, "variant": of, "spec": {**found["spec"], "method": method}}

    chain = [level(number, 0.2) for number in (2, 1, 3)]
    beside = [level(number, 0.2, "reinit-mask") for number in (1, 2, 3)]
    found = {name: [r["accuracy"] for r in line] for name, line in lines([*chain, *beside]).items()}
    assert found == {"magnitude+lottery": [0.99, 0.98, 0.97], "reinit-mask (of magnitude+lottery)": [0.99, 0.98, 0.97]}
    assert set(lines([*chain, *(level(number, 0.1) for number in (1, 2, 3))])) == {
        "magnitude+lottery, down to 0.2",
        "magnitude+lottery, down to 0.1",
    }


def test_accuracy_is_drawn_with_its_interval_against_the_dense_line():
    rows = [row("set", 0.1, 0.9, (0.88, 0.93)), row("set", 0.2, 0.95), row("dense", 1.0, 0.97, (0.96, 0.98), arm="dense")]
    (axes,) = accuracy(rows).axes
    line = next(each for each in axes.get_lines() if list(each.get_ydata()) == [95.0, 90.0])
    assert list(line.get_xdata()) == [0.2, 0.1]
    bars = [segment for part in axes.collections for segment in getattr(part, "get_segments", list)()]
    assert any(sorted(point[1] for point in segment) == pytest.approx([88.0, 93.0]) for segment in bars)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # sparser to the right
    assert any(list(each.get_ydata()) == [97.0, 97.0] for each in axes.get_lines())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from sparsefleet.trial.request import TrialRequest
    from sparsefleet.trial.spec import TrialSpec

    folder = tmp_path_factory.mktemp("trained")
    spec = TrialSpec.model_validate(
        {
            "dataset": {"name": "digits"},
            "model": {"name": "mlp", "params": {"hidden": [32]}},
            "layer": {"name": "csr"},
            "density": 0.2,
            "method": {"rewirer": {"name": "set", "params": {"every": 10}}},
            "optimizer": {"kind": "sgd", "lr": 0.1},
            "train": {"epochs": 3, "batch_size": 64},
        }
    )
    record = run_trial(TrialRequest(spec=spec, trial_key="k" * 64, workdir=folder, data_root=folder))
    assert record.state.value == "SUCCEEDED", record.reason
    return folder


def test_every_picture_of_a_trial_is_the_same_bytes_again(trained):
    first, second = (dict(trial_pictures(read_trial(trained, "a trial"))) for _ in range(2))
    assert list(first) == ["masks.png", "weights.png", "histograms.png", "evolution.png", "curves.png", "density.png"]
    assert first == second
    assert all(data.startswith(b"\x89PNG") and b"Software" not in data and len(data) < 300_000 for data in first.values())


def test_the_weights_of_a_picture_are_those_of_the_artifacts(trained):
    from safetensors.torch import load_file

    trial = read_trial(trained)
    state = load_file(trained / "model.safetensors")
    for name, layer in trial.weights.items():
        assert torch.equal(layer.values, state[f"{name}.values_"].reshape(-1))
        assert torch.equal(layer.flat, trial.masks[name].flat)
        assert layer.density == pytest.approx(0.2, abs=0.01)
        assert math.prod(layer.shape) == layer.n_sites


def test_a_curve_is_named_by_its_accuracy(trained):
    trial = read_trial(trained, "mine")
    figure = curves([trial, trial])
    (legend,) = figure.legends
    wanted = f"mine: accuracy {100 * trial.record['accuracy']['test']:.1f} %"
    assert {text.get_text() for text in legend.get_texts()} == {wanted}


def test_no_pyplot_is_left_behind(trained):
    import subprocess
    import sys

    code = "import sys; from pathlib import Path; from sparsefleet.report.pictures.draw import trial_pictures; from sparsefleet.report.pictures.trial import read_trial\n"
    code += "assert 'matplotlib' not in sys.modules\n"
    code += (
        "assert len(list(trial_pictures(read_trial(Path(sys.argv[1])), ['density']))) == 1\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(trained)], check=True)
