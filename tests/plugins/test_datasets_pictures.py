"""CIFAR and image folders: their files, their numbers, and the standard augmentation against torchvision's own steps."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sparsefleet_plugins.datasets.cifar import Cifar10, Cifar100
from sparsefleet_plugins.datasets.image_folder import ImageFolder
from sparsefleet_plugins.datasets.pictures import crop_and_flip, normalised

from sparsefleet import Rng, UserError
from sparsefleet.registry import Registry, catalog
from sparsefleet.trial.identity import data_digest
from sparsefleet.trial.spec import PluginRef

TEST_DATA = os.environ.get("SPARSEFLEET_TEST_DATA")
NORM = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def grey_levels(n, size=32, seed=0):
    return Rng("pixels", seed).integers(n * 3 * size * size, 256).to(torch.uint8).view(n, 3, size, size)


# Augmentation


def test_normalised_by_channel():
    x = normalised(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1), *NORM)
    assert x.flatten().tolist() == pytest.approx([-0.5 / 0.2, (0.2 - 0.4) / 0.25, 0.7 / 0.5])


def test_augmentation_is_torchvisions_pad_crop_and_flip():
    """Each result is one of the 9 x 9 x 2 that torchvision makes of its picture: padded with black, cropped, mirrored, and only then normalised."""
    from torchvision.transforms import functional as tv

    raw = grey_levels(6, size=8)
    got = crop_and_flip(normalised(raw, *NORM), Rng("a"), *NORM)
    draws = Rng("a")
    tops, lefts, mirrored = draws.integers(6, 9), draws.integers(6, 9), draws.integers(6, 2)
    for picture, out, top, left, mirror in zip(raw, got, tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True):
        wanted = tv.crop(tv.pad(picture, 4), top, left, 8, 8)
        wanted = tv.hflip(wanted) if mirror else wanted
        assert torch.equal(out, normalised(wanted[None], *NORM)[0])


def test_windows_and_mirrors_are_evenly_drawn():
    x = torch.zeros(20_000, 1, 3, 3)
    x[:, 0, 1, 0] = 1  # left of the middle
    y = crop_and_flip(x, Rng("even"), (0.0,), (1.0,), padding=1)
    places = y.mean((0, 1))  # a window holds the point in every place but those that the padding reaches
    assert torch.allclose(places.sum(), torch.tensor(6 / 9), atol=0.02)  # two of three windows along each side keep it, all three across
    assert torch.allclose(places, places.flip(1), atol=0.02)


def test_augmentation_draws_from_its_stream_and_keeps_the_batch():
    x = normalised(grey_levels(16), *NORM)
    before = x.clone()
    for plugin in (Cifar10(), Cifar100(), ImageFolder()):
        first, again, other = (plugin.augment(x, Rng("step", step)) for step in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(x, before)
    assert plugin.augment(x.double(), Rng("step")).dtype == torch.float64


# CIFAR


def write_cifar(root, monkeypatch, which):
    """Tiny batches in the authors' format, 4 pictures each, and their MD5s in torchvision's list."""
    reader = getattr(torchvision.datasets, which)
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    label = "labels" if which == "CIFAR10" else "fine_labels"
    sums = {}
    for i, (name, _) in enumerate([*reader.train_list, *reader.test_list]):
        batch = {"data": np.full((4, 3072), i, dtype=np.uint8), label: [i, 1, 2, 9]}
        batch["data"][0, 1024] = 255  # the first green pixel
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = {reader.meta["key"]: [f"class {i}" for i in range(10)]}
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(reader, "train_list", [[name, sums[name]] for name, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[name, sums[name]] for name, _ in reader.test_list])
    md5 = hashlib.md5((folder / reader.meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5})
    return folder


@pytest.mark.parametrize(("plugin", "which", "n"), [(Cifar10(), "CIFAR10", 20), (Cifar100(), "CIFAR100", 4)])
def test_cifar_is_read_and_normalised(tmp_path, monkeypatch, plugin, which, n):
    folder = write_cifar(tmp_path, monkeypatch, which)
    train, test = plugin.load(tmp_path, "train"), plugin.load(tmp_path, "test")
    assert train.x.shape == (n, 3, 32, 32)
    assert train.x.dtype == torch.float32
    assert train.y[:4].tolist() == [0, 1, 2, 9]
    assert len(test.y) == 4
    mean, std = (
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)) if which == "CIFAR10" else ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    )
    assert float(train.x[0, 1, 0, 0]) == pytest.approx((1 - mean[1]) / std[1], rel=1e-5)
    assert float(train.x[1, 2, 5, 5]) == pytest.approx(-mean[2] / std[2], rel=1e-5)
    assert {path.parent for path in plugin.files(tmp_path)} == {folder}


def test_a_changed_batch_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, monkeypatch, "CIFAR10")
    (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(UserError, match=r"other files than those of CIFAR10: data_batch_3(\n|$)"):
        Cifar10().load(tmp_path, "train")
    assert not (tmp_path / "ran").exists()


def test_absent_cifar_is_explained(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="CIFAR10 is not in") as caught:
        list(Cifar10().files(tmp_path))
    assert "download=True" in caught.value.fix
    folder = write_cifar(tmp_path, monkeypatch, "CIFAR100")
    (folder / "meta").unlink()
    with pytest.raises(UserError) as caught:
        list(Cifar100().files(tmp_path))
    assert caught.value.cause == "missing: meta"


# Image folders


def write_folder(root, counts, size=(8, 8), suffix=".png"):
    """``counts[split][class]`` pictures each; those of class i are filled with grey level 10 i + their number."""
    for split, classes in counts.items():
        for label, (name, n) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", size, (10 * label + i,) * 3).save(root / split / name / f"{i:04}{suffix}")


SMALL = {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1, "bee": 2}}
BARE = {"mean": (0, 0, 0), "std": (1, 1, 1), "size": 8, "classes": 2}


def test_an_image_folder_by_hand(tmp_path):
    write_folder(tmp_path / "images", SMALL)
    plugin = ImageFolder(**BARE)
    train, test = plugin.load(tmp_path, "train"), plugin.load(tmp_path, "test")
    assert train.x.shape == (5, 3, 8, 8)
    assert (train.x[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 10, 11]
    assert (train.y.tolist(), test.y.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 1])
    assert plugin.info.input_shape == (3, 8, 8)
    assert len(list(plugin.files(tmp_path))) == 8


def test_it_agrees_with_torchvision(tmp_path):
    """Grey, transparent and palette pictures, other sizes and formats: scaled by the shorter side, cut to the middle."""
    from torchvision import transforms

    write_folder(tmp_path / "x", SMALL)
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        Image.fromarray(draw.integers(0, 256, (30, 17, 3), dtype=np.uint8)).save(tmp_path / "x" / split / "ant" / "tall.jpg")
        Image.fromarray(draw.integers(0, 256, (9, 40), dtype=np.uint8)).save(tmp_path / "x" / split / "bee" / "grey.png")
        Image.fromarray(draw.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA").save(tmp_path / "x" / split / "bee" / "alpha.PNG")
    steps = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()])
    theirs = torchvision.datasets.ImageFolder(str(tmp_path / "x" / "train"), transform=steps)
    ours = ImageFolder(**BARE, path="x").load(tmp_path, "train")
    assert theirs.targets == ours.y.tolist()
    for i, (picture, _) in enumerate(theirs):
        assert torch.equal(picture, ours.x[i])


@pytest.mark.parametrize(
    ("parameters", "message", "fix"),
    [
        ({"classes": 3}, "has 2 class folders, classes says 3", "classes: 2"),
        ({"path": "elsewhere"}, "has no class folders", "SPARSEFLEET_DATA"),
    ],
)
def test_folders_that_do_not_fit_are_told(tmp_path, parameters, message, fix):
    write_folder(tmp_path / "images", SMALL)
    with pytest.raises(UserError, match=message) as caught:
        list(ImageFolder(**{**BARE, **parameters}).files(tmp_path))
    assert fix in caught.value.fix


def test_a_class_without_pictures_or_beyond_training_is_told(tmp_path):
    write_folder(tmp_path / "images", SMALL)
    (tmp_path / "images" / "test" / "cow").mkdir()
    with pytest.raises(UserError, match="a class that train/ has not: cow"):
        ImageFolder(**BARE).load(tmp_path, "test")
    (tmp_path / "images" / "test" / "cow").rmdir()
    for path in (tmp_path / "images" / "test" / "ant").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="ant has no pictures"):
        ImageFolder(**BARE).load(tmp_path, "test")


def test_a_damaged_picture_is_named(tmp_path):
    write_folder(tmp_path / "images", SMALL)
    (tmp_path / "images" / "train" / "bee" / "0001.png").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"0001\.png: not a picture"):
        ImageFolder(**BARE).load(tmp_path, "train")


def test_a_picture_that_changes_its_class_changes_the_digest(tmp_path):
    """The files' names and bytes, in order, are the same before and after: only the folder tells the class."""
    write_folder(tmp_path / "images", {"train": {"ant": 2, "bee": 1}, "test": {"ant": 1, "bee": 1}})
    folder = tmp_path / "images" / "train"
    (folder / "bee" / "0000.png").rename(folder / "bee" / "0002.png")
    ref = PluginRef(name="image-folder", params=ImageFolder(**BARE).model_dump(mode="json"))
    before = data_digest(ref, catalog(), tmp_path)
    (folder / "ant" / "0001.png").rename(folder / "bee" / "0001.png")
    assert data_digest(ref, catalog(), tmp_path) != before


def test_the_shape_follows_from_the_parameters_alone():
    built = Registry(catalog()).build("dataset", PluginRef(name="image-folder", params={"classes": 7, "size": 20}))
    assert (built.info.input_shape, built.info.n_outputs) == ((3, 20, 20), 7)
    assert "info" not in catalog().get("dataset", "image-folder").facts
    assert catalog().get("dataset", "cifar100").facts["info"]["n_outputs"] == 100


@pytest.mark.data
def test_the_real_cifar_jpegs_load_in_seconds():
    plugin = ImageFolder(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    train, test = plugin.load(Path(TEST_DATA), "train"), plugin.load(Path(TEST_DATA), "test")
    assert train.y.bincount().tolist() == [1000] * 10
    assert test.y.bincount().tolist() == [200] * 10
    assert train.x.numel() * train.x.element_size() == 10_000 * 12 * 32**2
    assert train.x.mean((0, 2, 3)).abs().max() < 0.02  # a subset, and JPEG
    assert (train.x.std((0, 2, 3)) - 1).abs().max() < 0.02
