"""What docs/data.md shows works: its data set conforms, its grid is planned, and its table knows every data set and its size."""

import re
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from sparsefleet import Rng
from sparsefleet.cli.app import cli
from sparsefleet.registry import Registry, catalog
from sparsefleet.testing import check

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def block(kind):
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_its_data_set_conforms():
    space = {"__name__": "blobs"}
    exec(compile(block("python"), "docs/data.md", "exec"), space)
    assert check(space["Blobs"](features=3)) == []
    assert space["sparsefleet_datasets"]() == [space["Blobs"]]


def test_its_grid_is_planned(tmp_path, monkeypatch):
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class-{label}"
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (int(Rng(split).integers(1, 200)),) * 3).save(folder / "0.png")
    (tmp_path / "pictures.yaml").write_text(block("yaml"))
    monkeypatch.setenv("SPARSEFLEET_DATA", str(tmp_path))
    done = CliRunner().invoke(cli, ["plan", str(tmp_path / "pictures.yaml")])
    assert done.exit_code == 0, done.output
    assert "2 densities × 1 layer × 1 method × 1 seed = 2 trials" in done.output


def test_every_data_set_is_in_its_table():
    told = set(re.findall(r"\[`([a-z0-9-]+)`\]\(plugins/dataset-\1\.md\)", PAGE))
    assert told == {entry.name for entry in catalog().entries if entry.family == "dataset" and entry.distribution == "sparsefleet"}


def test_the_sizes_in_its_table_are_those_of_the_shapes():
    counts = {
        "digits": 1_797,
        "mnist": 70_000,
        "cifar10": 60_000,
        "rt-polarity": 10_662,
        "two-feature-sum": 2_500,
        "random-regression": 128,
    }
    for name, n in counts.items():
        info = Registry(catalog()).plugin_class("dataset", name)().info
        numbers = 1
        for side in info.input_shape:
            numbers *= side
        n_bytes = n * numbers * (8 if info.vocabulary else 4)
        row = next(line for line in PAGE.splitlines() if f"[`{name}`]" in line)
        told = float(re.search(r"([\d.]+) MiB", row).group(1))
        assert abs(n_bytes / 2**20 - told) <= max(0.05, 0.002 * told), name
