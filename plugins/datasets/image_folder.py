"""Anyone's pictures: a folder of class folders for training and one for testing, as torchvision's ImageFolder reads them."""

import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from sparsefleet_plugins.datasets.pictures import crop_and_flip, normalised
from torch import Tensor

from sparsefleet import DataInfo, Dataset, Rng, TensorData, UserError, hookimpl

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_THREADS = 4
_Level = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0, le=1)]


class ImageFolder(Dataset):
    """Reads ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` in colour; classes are numbered by the sorted names of the training folders.

    A picture of another size is scaled until its shorter side is ``size`` (bilinear, antialiased) and cut to the middle square, as by torchvision's
    Resize and CenterCrop. All pictures lie in memory as float32: 12 bytes times ``size`` squared each, 141 MiB for 12,000 of size 32, and twice that while a validation set is
    split off. ``train: {augment: true}`` cuts random windows out of pictures padded by an eighth of their size and mirrors half of them.
    """

    name = "image-folder"
    paper = "torchvision.datasets.ImageFolder; augmentation: arXiv 1512.03385, section 4.2"

    path: str = Field("images", min_length=1, description="the folder that holds train/ and test/; a relative one lies in the data root")
    classes: int = Field(10, ge=2, description="how many class folders there are")
    size: int = Field(32, ge=1, description="side of a picture, in pixels")
    mean: tuple[_Level, _Level, _Level] = Field(
        (0.485, 0.456, 0.406), description="subtracted from red, green and blue, which lie in [0, 1]"
    )
    std: tuple[_Spread, _Spread, _Spread] = Field((0.229, 0.224, 0.225), description="what they are then divided by")

    @property
    def info(self) -> DataInfo:
        """Follows from the parameters; the folders are held against it."""
        return DataInfo("classification", (3, self.size, self.size), self.classes)

    def files(self, root: Path) -> Iterable[Path]:
        """Every picture, by split, class and name."""
        return [path for split in ("train", "test") for path, _ in self._pictures(root, split)]

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The pictures of one of the two folders, by class and name."""
        found = self._pictures(root, split)
        pictures = torch.empty((len(found), self.size, self.size, 3), dtype=torch.uint8)
        with ThreadPoolExecutor(_THREADS) as pool:  # decoding releases the interpreter's lock
            for i, decoded in enumerate(pool.map(self._decoded, [path for path, _ in found], chunksize=64)):
                pictures[i] = torch.from_numpy(decoded)
        x = normalised(pictures.permute(0, 3, 1, 2), self.mean, self.std).contiguous()
        return TensorData(x, torch.tensor([label for _, label in found], dtype=torch.int64))

    def augment(self, x: Tensor, rng: Rng) -> Tensor:
        """Random crop after padding by an eighth of the size (4 pixels of 32), and mirroring."""
        return crop_and_flip(x, rng, self.mean, self.std, padding=self.size // 8)

    def _pictures(self, root: Path, split: str) -> list[tuple[Path, int]]:
        """The files of a split with their classes."""
        folder = root / self.path
        names = _class_names(folder / "train", self.path)
        if len(names) != self.classes:
            raise UserError(f"{folder / 'train'} has {len(names)} class folders, classes says {self.classes}", fix=f"classes: {len(names)}")
        strange = sorted(set(_class_names(folder / split, self.path)) - set(names))
        if strange:
            raise UserError(f"{folder / split} has a class that train/ has not: {', '.join(strange)}")
        return [(path, label) for label, name in enumerate(names) for path in _in_class(folder / split / name)]

    def _decoded(self, path: Path) -> np.ndarray:
        """``(size, size, 3)`` uint8."""
        from PIL import Image

        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, LookupError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: not a picture that can be read", cause=str(error)) from error
        if picture.size != (self.size, self.size):
            width, height = (self.size * side // min(picture.size) for side in picture.size)
            left, top = round((width - self.size) / 2), round((height - self.size) / 2)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + self.size, top + self.size))
        return np.array(picture)


def _class_names(folder: Path, path: str) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise UserError(
            f"{folder} has no class folders",
            fix=f"put pictures under {path}/train/CLASS and {path}/test/CLASS of the folder that --data or SPARSEFLEET_DATA names, or give path",
        )
    return names


def _in_class(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder} has no pictures", cause=f"looked for {', '.join(sorted(_SUFFIXES))}")
    return found


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [ImageFolder]
