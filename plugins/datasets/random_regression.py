"""Random inputs and random targets, from the notebook "SparseLinear Demonstration using MNIST": how fast a network fits what cannot be learned."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from sparsefleet import DataInfo, Dataset, Rng, TensorData, hookimpl

_N = 64


class RandomRegression(Dataset):
    """64 examples of 200 standard normal inputs and 10 standard normal targets, drawn under a fixed key; as many others are the test set.

    Targets do not depend on inputs, so the training loss says how fast the examples are memorised, and the test error cannot fall below the
    targets' variance, 1. The product's loss is the mean over the 640 targets of a batch; a figure with their sum is 640 times as large, and
    a learning rate for the sum is 1/640 of the one for the mean.
    """

    name = "random-regression"
    paper = "SparseLinear Demonstration using MNIST, section Training with random inputs"
    info: ClassVar[DataInfo] = DataInfo("regression", (200,), 10)

    def files(self, root: Path) -> Iterable[Path]:
        """None: the numbers are drawn."""
        return ()

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The same numbers at every call."""
        draw = Rng("random-regression", split)
        x = draw.normal(_N * 200).float().view(_N, 200)
        return TensorData(x, draw.normal(_N * 10).float().view(_N, 10))


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [RandomRegression]
