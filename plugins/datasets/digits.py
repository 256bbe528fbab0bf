"""Digits: 1,797 handwritten digits, 8 x 8, 17 grey levels, shipped inside scikit-learn (UCI, doi:10.24432/C50P49). Needs no download."""

import gzip
import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from sparsefleet import DataInfo, Dataset, Rng, TensorData, UserError, hookimpl

_N, _N_TRAIN = 1797, 1437
_MEAN, _STD = 0.3055, 0.3765  # of the training split, after scaling to [0, 1]


class Digits(Dataset):
    """1,437 training and 360 test images; the split is a fixed permutation, drawn under the key ``digits-split``."""

    name = "digits"
    paper = "doi:10.24432/C50P49"
    info: ClassVar[DataInfo] = DataInfo("classification", (1, 8, 8), 10)

    def files(self, root: Path) -> Iterable[Path]:
        """scikit-learn's own file; ``root`` is not used."""
        return [_file()]

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """Grey levels over 16, normalised by the training split's mean and standard deviation."""
        table = _table()
        order = torch.argsort(Rng("digits-split").uniform(_N))
        rows = table[torch.sort(order[:_N_TRAIN] if split == "train" else order[_N_TRAIN:]).values]
        return TensorData(((rows[:, :64] / 16 - _MEAN) / _STD).view(-1, 1, 8, 8), rows[:, 64].long())


@lru_cache(maxsize=1)
def _table() -> torch.Tensor:
    """``(1797, 65)`` float32: 64 grey levels and the class."""
    text = np.frombuffer(gzip.decompress(_file().read_bytes()), dtype=np.uint8)
    end = np.flatnonzero(text < ord("0"))  # of a number: its comma or line end. None has more than two figures, so no parser is needed
    tens, ones = text[end - 2], text[end - 1]
    values = np.where(tens < ord("0"), 0, 10 * (tens - 48.0)) + (ones - 48.0)
    if len(values) != 65 * _N:
        raise UserError(f"{_file()}: expected {_N} digits of 65 numbers, got {len(values)} numbers", fix="reinstall scikit-learn")
    return torch.from_numpy(values.astype(np.float32)).view(-1, 65)


def _file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # finds it without importing it, which would take a second
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise UserError("the digits data set ships with scikit-learn, which is not installed", fix="pip install scikit-learn")


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [Digits]
