"""Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 pictures of clothes, 28 x 28, ten classes; files of the same format as MNIST's."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from sparsefleet_plugins.datasets import idx

from sparsefleet import DataInfo, Dataset, TensorData, hookimpl


class FashionMnist(Dataset):
    """Reads ``ROOT/FashionMNIST/raw`` (torchvision) or ``ROOT/fashion-mnist`` (Debian); normalised by mean 0.2860 and deviation 0.3530."""

    name = "fashion-mnist"
    paper = "arXiv 1708.07747"
    info: ClassVar[DataInfo] = DataInfo("classification", (1, 28, 28), 10)

    def files(self, root: Path) -> Iterable[Path]:
        """Four idx files."""
        return idx.digest_files(_find(root))

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The official split."""
        return idx.load(_find(root), split, mean=0.2860, std=0.3530)


def _find(root: Path) -> dict[tuple[str, str], Path]:
    folders = [root / "FashionMNIST" / "raw", root / "fashion-mnist"]
    if "fashion" in root.name.lower():  # MNIST's files carry the same names, so a folder must say that it is this data set
        folders.append(root)
    fix = (
        "name the folder that holds FashionMNIST/raw with --data or SPARSEFLEET_DATA (Debian's package dataset-fashion-mnist: "
        "/usr/share/datasets), or download it once: "
        f'python -c "import torchvision; torchvision.datasets.FashionMNIST({str(root)!r}, download=True)"'
    )
    return idx.find(folders, what="Fashion-MNIST", fix=fix)


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [FashionMnist]
