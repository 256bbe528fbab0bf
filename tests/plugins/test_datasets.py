"""Digits, and the idx files of MNIST and Fashion-MNIST."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparsefleet_plugins.datasets import idx
from sparsefleet_plugins.datasets.digits import Digits
from sparsefleet_plugins.datasets.fashion_mnist import FashionMnist
from sparsefleet_plugins.datasets.mnist import Mnist

from sparsefleet import UserError

NOWHERE = Path("nowhere")
TEST_DATA = os.environ.get("SPARSEFLEET_TEST_DATA")
DEBIAN = Path("/usr/share/datasets")


def idx_bytes(array):
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.dim()]) + shape + bytes(array.reshape(-1).tolist())


def write_pictures(folder, *, suffix="", n_train=6, n_test=3):
    """Six training and three test pictures; picture i is filled with grey level i."""
    folder.mkdir(parents=True)
    pack = gzip.compress if suffix else bytes
    for stem, n in (("train", n_train), ("t10k", n_test)):
        images = torch.arange(n, dtype=torch.uint8)[:, None, None].expand(n, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(torch.arange(n) % 10)))


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    train, test = Digits().load(NOWHERE, "train"), Digits().load(NOWHERE, "test")
    assert (len(train.y), len(test.y)) == (1437, 360)
    ours = torch.cat([train.x, test.x]).view(1797, 64).double() * 0.3765 + 0.3055
    rows = {(*(16 * x).round().int().tolist(), int(y)) for x, y in zip(ours, torch.cat([train.y, test.y]), strict=True)}
    assert rows == {(*map(int, x), int(y)) for x, y in zip(theirs.data, theirs.target, strict=True)}


def test_digits_split_is_fixed_and_normalised_by_its_training_part():
    train, test = Digits().load(NOWHERE, "train"), Digits().load(NOWHERE, "test")
    assert train.y[:10].tolist() == Digits().load(NOWHERE, "train").y[:10].tolist()
    assert train.x.shape == (1437, 1, 8, 8)
    assert abs(float(train.x.mean())) < 3e-4  # the constants have four digits
    assert abs(float(train.x.std()) - 1) < 3e-4
    assert test.y.bincount().tolist() == [39, 21, 47, 37, 35, 42, 48, 27, 34, 30]  # changes if the permutation does


def test_digits_do_not_import_scikit_learn():
    code = (
        "import sys; from pathlib import Path; from sparsefleet_plugins.datasets.digits import Digits\n"
        "Digits().load(Path('x'), 'train'); print('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_torchvisions_layout(tmp_path, suffix):
    write_pictures(tmp_path / "MNIST" / "raw", suffix=suffix)
    data = Mnist().load(tmp_path, "train")
    assert data.x.shape == (6, 1, 28, 28)
    assert data.y.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.x[5, 0, 3, 3] == pytest.approx((5 / 255 - 0.1307) / 0.3081)
    assert len(Mnist().load(tmp_path, "test").y) == 3
    assert len(list(Mnist().files(tmp_path))) == 4


def test_fashion_mnist_reads_torchvisions_and_debians_layout(tmp_path):
    write_pictures(tmp_path / "a" / "FashionMNIST" / "raw")
    write_pictures(tmp_path / "b" / "fashion-mnist", suffix=".gz")
    for root in (tmp_path / "a", tmp_path / "b", tmp_path / "b" / "fashion-mnist"):
        assert FashionMnist().load(root, "test").x[2, 0, 0, 0] == pytest.approx((2 / 255 - 0.2860) / 0.3530)


def test_mnist_is_not_mistaken_for_fashion(tmp_path):
    write_pictures(tmp_path / "MNIST" / "raw")
    for root in (tmp_path, tmp_path / "MNIST" / "raw"):
        with pytest.raises(UserError, match="Fashion-MNIST is not in"):
            FashionMnist().load(root, "train")


@pytest.mark.parametrize(("plugin", "folder"), [(Mnist(), "MNIST/raw"), (FashionMnist(), "FashionMNIST/raw")])
def test_absent_files_are_explained(tmp_path, plugin, folder):
    with pytest.raises(UserError) as caught:
        plugin.load(tmp_path, "train")
    assert folder in str(caught.value)
    assert "SPARSEFLEET_DATA" in caught.value.fix
    assert "download=True" in caught.value.fix


def test_half_a_data_set_counts_as_absent(tmp_path):
    write_pictures(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="MNIST is not in"):
        list(Mnist().files(tmp_path))


GOOD = idx_bytes(torch.zeros((2, 28, 28), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"<html>404</html>", "not an idx file"),
        (bytes([0, 0, 13, 3]) + GOOD[4:], "not an idx file"),  # floats
        (idx_bytes(torch.zeros(9, dtype=torch.uint8)), "not an idx file"),  # one dimension
        (GOOD[:-1], "1567 follow"),
        (GOOD + b"x", "1568 bytes .* more follow"),
        (idx_bytes(torch.zeros((2, 14, 14), dtype=torch.uint8)), "images must be 28 x 28, got 14 x 14"),
        (idx_bytes(torch.zeros((5, 28, 28), dtype=torch.uint8)), "6 labels for 5 images"),
    ],
)
def test_damaged_images_are_named(tmp_path, content, message):
    write_pictures(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Mnist().load(tmp_path, "train")
    assert "ubyte" in str(caught.value)


def test_labels_beyond_nine_are_refused(tmp_path):
    write_pictures(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(torch.tensor([0, 1, 2, 3, 4, 17])))
    with pytest.raises(UserError, match="labels must be 0 to 9, got 17"):
        Mnist().load(tmp_path, "train")


@pytest.mark.parametrize("cut", [5, 30])
def test_a_truncated_download_is_said_to_be_one(tmp_path, cut):
    write_pictures(tmp_path / "MNIST" / "raw", suffix=".gz")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged gzip file"):
        idx.read(path, n_dims=3)


@pytest.mark.skipif(not (DEBIAN / "fashion-mnist").is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    train, test = FashionMnist().load(DEBIAN, "train"), FashionMnist().load(DEBIAN, "test")
    assert train.y.bincount().tolist() == [6000] * 10 and test.y.bincount().tolist() == [1000] * 10
    assert train.x.shape == (60_000, 1, 28, 28)
    assert abs(float(train.x.mean())) < 2e-3
    assert abs(float(train.x.std()) - 1) < 2e-3


@pytest.mark.data
def test_the_real_mnist():
    train, test = Mnist().load(Path(TEST_DATA), "train"), Mnist().load(Path(TEST_DATA), "test")
    assert train.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert len(test.y) == 10_000  # all of them: drop_last loses 16 in source 004
    assert abs(float(train.x.mean())) < 2e-4
    assert abs(float(train.x.std()) - 1) < 2e-4
