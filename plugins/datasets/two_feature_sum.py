"""The synthetic task of the notebooks "Sparse Neural Networks" and "Dynamic Sparse Training": is the sum of the first two of twenty features positive?"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

from sparsefleet import DataInfo, Dataset, Rng, TensorData, hookimpl

_N = {"train": 500, "test": 2000}
_FEATURES = 20


class TwoFeatureSum(Dataset):
    """500 training and 2,000 test examples of 20 standard normal features, drawn under a fixed key; the class is 1 where x0 + x1 > 0.

    18 of the 20 features say nothing, so it shows whether a method finds the connections that matter. The notebooks have no test set and report
    the accuracy on the 500 training examples.
    """

    name = "two-feature-sum"
    paper = "Module 05: Sparse Neural Networks, section 5; Module 07: Dynamic Sparse Training, section 5"
    info: ClassVar[DataInfo] = DataInfo("classification", (_FEATURES,), 2)

    def files(self, root: Path) -> Iterable[Path]:
        """None: the numbers are drawn."""
        return ()

    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The same numbers at every call."""
        n = _N[split]
        x = Rng("two-feature-sum", split).normal(n * _FEATURES).float().view(n, _FEATURES)
        return TensorData(x, (x[:, 0] + x[:, 1] > 0).long())


@hookimpl
def sparsefleet_datasets() -> list[type[Dataset]]:
    """Registers this module's data set."""
    return [TwoFeatureSum]
