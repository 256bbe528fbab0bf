"""What a plugin author writes: one small frozen class per idea.

A plugin is a frozen pydantic model of its hyper-parameters and holds no tensors. Class facts (``name``, ``paper``, ``needs_grad`` …) are
class variables declared here, so that ``name = "set"`` is enough in a subclass. Everything around the idea (how many, which layer, the
optimizer's state, the accounting, the checkpoint) belongs to the core.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsefleet.method import Calibration as Calibration, Progress as Progress, Pruner as Pruner, Rewirer as Rewirer, Update as Update
from sparsefleet.plugin_base import Plugin as Plugin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsefleet.connections import Connections
    from sparsefleet.nn.module import SparseModule
    from sparsefleet.rng import Rng

FAMILIES = ("pruner", "rewirer", "layer", "connectivity", "activation", "model", "dataset")


class Layer(Plugin):
    """Stores the weights of a module in one way.

    Class facts: ``execution`` names what is timed; ``kinds`` the module types it can replace; ``topology`` the patterns it can hold.
    """

    family: ClassVar[str] = "layer"
    execution: ClassVar[str] = ""
    """What is timed, in a word for records and tables: ``sparse_csr``, ``sparse_gather``, any text; but ``dense`` and ``masked_dense`` say that
    it computes densely, and ``masked_dense`` never enters a speed-up."""
    kinds: ClassVar[tuple[str, ...]] = ("Linear",)
    """Names of the torch modules that it can replace."""
    topology: ClassVar[Literal["free", "constant-fan-in", "block", "n:m", "all"]] = "free"
    """``all``: every site is stored, density is 1."""
    stores_dense: ClassVar[bool] = False
    """Holds a value at absent sites too."""
    narrows: ClassVar[bool] = False
    """With topology ``all``: the network loses the units that its pruner removed (pattern ``neuron``) before the layer stores what is left."""
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """Kinds of devices that it computes on."""
    n_of_m: ClassVar[tuple[int, int] | None] = None
    """The one n:m that it holds, for topology ``n:m``."""
    multiple_of: ClassVar[int] = 1
    """Both sides of a weight must be multiples of it."""
    chooses: ClassVar[tuple[str, ...]] = ()
    """It stands for one of these layers, in the order of preference: the fastest one is chosen by measurement before the trial has a key."""
    requires: ClassVar[str] = ""
    """A module that it imports and that may not be installed."""
    index_bytes: ClassVar[float] = 16.0
    """Bytes of indices that a stored connection takes, the transpose's included: for estimates before anything is built."""

    @property
    def tile(self) -> int:
        """Units per side of its tiles, for a layer with topology ``block``."""
        return 1

    @abstractmethod
    def build(self, template: nn.Module, conn: Connections, bias: Tensor | None) -> SparseModule:
        """The replacement of ``template`` (on the meta device) with the weights of ``conn`` and ``bias``."""


class Connectivity(Plugin):
    """Draws the first topology of a sparse layer."""

    family: ClassVar[str] = "connectivity"
    topology: ClassVar[Literal["free", "constant-fan-in", "block", "row"]] = "free"
    """What every draw has: constant fan-in (up to one), whole blocks, whole rows (the last of each may be a part); or nothing of these."""
    reads_files: ClassVar[bool] = False
    """What it draws also depends on ``files``; their bytes are part of the trial's key."""
    settled_by: ClassVar[str] = ""
    """The parameter that, where it is given, settles how many connections a layer gets (``nnz_of``); empty: the density alone."""

    @abstractmethod
    def draw(self, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``(2, nnz)`` int64 different sites, exactly nnz of them; never allocates ``n_out * n_in``."""

    def draw_for(self, layer: str, shape: tuple[int, int], nnz: int, rng: Rng) -> Tensor:
        """``draw``, for connectivities that must know which layer it is (given by the user, or from another trial)."""
        return self.draw(shape, nnz, rng)

    def check_layers(self, names: Sequence[str]) -> None:
        """Refuses what cannot be right for a network whose sparse layers are ``names``, input to output, before anything is drawn.

        Raises:
            UserError: it has connections for a layer that is not there; the plan leaves the trial out and gives the sentence as the reason.
        """

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        """How many connections the layer gets: what the density asks, unless the connectivity settles it (given sites, a given fan-in).

        Raises:
            UserError: it has none for such a layer; the plan leaves the trial out and gives the sentence as the reason.
        """
        return asked

    def sample_layer(self) -> tuple[str, tuple[int, int]]:
        """Name and ``(n_out, n_in)`` of a layer that it accepts, for its conformance checks, where not every layer will do."""
        return "layer", (12, 20)

    def files(self, root: Path) -> Iterable[Path]:
        """The files that it reads.

        Args:
            root: the folder of the data sets, where relative paths start.

        Raises:
            UserError: they are not there.
        """
        return ()

    def located(self, root: Path) -> Connectivity:
        """The same connectivity with its relative paths under ``root``."""
        return self


class Activation(Plugin):
    """A non-linearity. The module may have an ``on_epoch()`` method, called at the end of each training epoch.

    A parameter ``density`` (float, a share) or ``k`` (int) of a sparse one promises how many units of a sample it lets through, ties included;
    one that has neither, such as a threshold, promises no number.
    """

    family: ClassVar[str] = "activation"
    sparse: ClassVar[bool] = False
    """Leaves most units at zero; the dense twin has relu in its place."""

    @abstractmethod
    def build(self, features: int) -> nn.Module:
        """The module for inputs ``(batch, features)`` or ``(batch, features, height, width)``."""


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of the data: the task, and shapes without the batch dimension."""

    task: Literal["classification", "regression"]
    input_shape: tuple[int, ...]
    n_outputs: int
    """Classes, or regression targets."""
    vocabulary: int = 0
    """Where inputs are tokens, int64 below this number, 0 for padding at the end; 0: inputs are numbers."""


class Model(Plugin):
    """A network, dense: the core replaces its prunable modules. Built on the meta device.

    The core replaces ``nn.LSTM``, ``nn.GRU`` and ``nn.MultiheadAttention`` first, by modules of the same signature whose gates and projections
    are Linear (``sparsefleet.nn.LSTM`` …): ``prunable`` sees those.
    """

    family: ClassVar[str] = "model"
    kinds: ClassVar[tuple[str, ...]] = ("Linear",)
    """What its prunable modules are, of Linear, Conv2d and Embedding, or ``kind:name=value`` where a parameter has that value: a plan skips
    layers that cannot store one of them, unless ``keep_dense`` names that kind."""
    chain: ClassVar[tuple[str, ...]] = ("input", "hidden", "outputs")
    """Widths from input to output where the model is a chain of Linear layers, for estimates of memory before it is built: ``input`` and
    ``outputs`` are the data's, other names are parameters, ``a*b`` is a product, ``a[-1]`` the last of several, and ``a:name=value`` stands only
    where the parameter has the value. A model without these parameters has no estimate."""

    @abstractmethod
    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """The dense network; ``act(features)`` makes one activation."""

    def prunable(self, network: nn.Module) -> Sequence[str]:
        """Names of the modules whose weights may become sparse, input to output; default: every Linear and Conv2d."""
        from torch import nn

        return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]

    def narrowed(self, factor: float) -> Model:
        """The same architecture with every hidden width times ``factor`` (at least 1), for ``small-dense``."""
        raise TypeError(f"model {self.name!r} cannot be narrowed")


@dataclass(frozen=True)
class TensorData:
    """A split that fits in memory.

    Attributes:
        x: ``(n, *input_shape)``, float32 numbers or int64 tokens.
        y: ``(n,)`` int64 classes, or ``(n, n_outputs)`` regression targets.
    """

    x: Tensor
    y: Tensor


class Dataset(Plugin):
    """A data set with a fixed training and test split."""

    family: ClassVar[str] = "dataset"
    info: ClassVar[DataInfo]
    """The task and the shapes; a data set whose shapes follow from its parameters defines a property ``info``. Networks are built and timed
    without the data, so it never depends on files: ``files`` refuses those that do not fit it."""

    @abstractmethod
    def files(self, root: Path) -> Iterable[Path]:
        """The files that hold the data under ``root``; their bytes are the data's digest.

        Raises:
            UserError: they are not there; the message says how to get them.
        """

    @abstractmethod
    def load(self, root: Path, split: Literal["train", "test"]) -> TensorData:
        """The split, preprocessed, in memory."""

    def augment(self, x: Tensor, rng: Rng) -> Tensor:
        """The standard augmentation of one training batch; default: none."""
        return x

    def fake(self, n: int) -> TensorData:
        """``n`` invented examples of the right shapes, for tests and timings."""
        import torch

        gen = torch.Generator().manual_seed(n)
        shape = (n, *self.info.input_shape)
        x = torch.randint(self.info.vocabulary, shape, generator=gen) if self.info.vocabulary else torch.randn(shape, generator=gen)
        if self.info.task == "regression":
            return TensorData(x, torch.randn((n, self.info.n_outputs), generator=gen))
        return TensorData(x, torch.randint(self.info.n_outputs, (n,), generator=gen))


def parameters_of(plugin: Plugin) -> dict[str, Any]:
    """The hyper-parameters as JSON values, defaults included."""
    return plugin.model_dump(mode="json")
