"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour photographs, 32 x 32, in torchvision's folder layout.

torchvision reads the files, whose MD5 it checks first. In memory the training set is float32 and takes 586 MiB, and as much again for the moment
in which a validation set is split off.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from sparsefleet_plugins.datasets.pictures import crop_and_flip, normalised
from torch import Tensor

from sparsefleet import DataInfo, Dataset, Rng, TensorData, UserError, hookimpl

_Numbers = tuple[float, float, float]


class Cifar10(Dataset):
    """Reads ``ROOT/cifar-10-batches-py``; normalised by the training set's mean and standard deviation of each channel.

    ``train: {augment: true}`` cuts a random 32 x 32 window out of each picture padded by 4 black pixels, and mirrors half of them.
    """

    name = "cifar10"
    paper = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; augmentation: arXiv 1512.03385, section 4.2"
    info: ClassVar[DataInfo] = DataInfo("classification", (3, 32, 32), 10)

    def files(self, root: Path) -> Iterable[Path]:
        """The batches and the names of the classes."""
        return _files(root, "CIFAR10")

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The official split."""
        return _load(root, "CIFAR10", split, *_CIFAR10)

    def augment(self, x: Tensor, rng: Rng) -> Tensor:
        """Random crop after padding by 4, and mirroring."""
        return crop_and_flip(x, rng, *_CIFAR10)


class Cifar100(Dataset):
    """Reads ``ROOT/cifar-100-python``, the 100 fine classes; normalised and augmented as CIFAR-10 is, by its own mean and deviation."""

    name = "cifar100"
    paper = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; augmentation: arXiv 1512.03385, section 4.2"
    info: ClassVar[DataInfo] = DataInfo("classification", (3, 32, 32), 100)

    def files(self, root: Path) -> Iterable[Path]:
        """The two batches and the names of the classes."""
        return _files(root, "CIFAR100")

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The official split."""
        return _load(root, "CIFAR100", split, *_CIFAR100)

    def augment(self, x: Tensor, rng: Rng) -> Tensor:
        """Random crop after padding by 4, and mirroring."""
        return crop_and_flip(x, rng, *_CIFAR100)


_CIFAR10: tuple[_Numbers, _Numbers] = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100: tuple[_Numbers, _Numbers] = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def _reader(which: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, which)


def _files(root: Path, which: str) -> list[Path]:
    reader = _reader(which)
    folder = root / reader.base_folder
    names = [name for name, _ in [*reader.train_list, *reader.test_list]] + [reader.meta["filename"]]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        fix = (
            f"name the folder that holds {reader.base_folder} with --data or SPARSEFLEET_DATA, or download it once: "
            f'python -c "import torchvision; torchvision.datasets.{which}({str(root)!r}, download=True)"'
        )
        raise UserError(f"{which} is not in {folder}", cause=f"missing: {', '.join(missing)}", fix=fix)
    return [folder / name for name in names]


def _altered(folder: Path, which: str) -> str:
    """The files with another MD5 than the reader knows."""
    from torchvision.datasets.utils import check_integrity

    reader = _reader(which)
    of = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    return ", ".join(name for name, md5 in of.items() if not check_integrity(str(folder / name), md5))


def _load(root: Path, which: str, split: str, mean: _Numbers, std: _Numbers) -> TensorData:
    folder = _files(root, which)[0].parent
    try:
        read = _reader(which)(str(root), train=split == "train", download=False)
    except RuntimeError as error:  # an MD5 that differs
        raise UserError(
            f"{folder}: other files than those of {which}: {_altered(folder, which)}", cause=str(error), fix="download them again"
        ) from error
    pictures = torch.from_numpy(read.data).permute(0, 3, 1, 2)
    return TensorData(normalised(pictures, mean, std).contiguous(), torch.tensor(read.targets, dtype=torch.int64))


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data sets."""
    return [Cifar10, Cifar100]
