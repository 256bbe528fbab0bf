"""MNIST (LeCun et al. 1998, doi:10.1109/5.726791): 60,000 + 10,000 handwritten digits, 28 x 28, in torchvision's folder layout."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from sparsefleet_plugins.datasets import idx

from sparsefleet import DataInfo, Dataset, TensorData, hookimpl


class Mnist(Dataset):
    """Reads ``ROOT/MNIST/raw``; normalised by the training set's mean 0.1307 and standard deviation 0.3081."""

    name = "mnist"
    paper = "doi:10.1109/5.726791"
    info: ClassVar[DataInfo] = DataInfo("classification", (1, 28, 28), 10)

    def files(self, root: Path) -> Iterable[Path]:
        """Four idx files."""
        return idx.digest_files(_find(root))

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The official split."""
        return idx.load(_find(root), split, mean=0.1307, std=0.3081)


def _find(root: Path) -> dict[tuple[str, str], Path]:
    fix = (
        "name the folder that holds MNIST/raw with --data or SPARSEFLEET_DATA, or download it once: "
        f'python -c "import torchvision; torchvision.datasets.MNIST({str(root)!r}, download=True)"'
    )
    return idx.find([root / "MNIST" / "raw"], what="MNIST", fix=fix)


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [Mnist]
