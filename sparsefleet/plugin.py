"""What a plugin author writes: one small frozen class per idea.

A plugin is a frozen pydantic model of its hyper-parameters and holds no tensors. Class facts (``name``, ``paper``, ``needs_grad`` …) are
class variables declared here, so that ``name = "set"`` is enough in a subclass. Everything around the idea (how many, which layer, the
optimizer's state, the accounting, the checkpoint) belongs to the core.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsefleet.connections import Connections
    from sparsefleet.nn.module import SparseModule
    from sparsefleet.rng import Rng

FAMILIES = ("pruner", "rewirer", "layer", "connectivity", "activation", "model", "dataset")


class Plugin(BaseModel):
    """The base of every plugin: validated, immutable hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    """Where the method is defined: arXiv id or DOI, with section or equation."""
    rule: ClassVar[str] = ""
    """The method in a formula or two, in plain text, for its page."""
    cannot: ClassVar[str] = ""
    """What it cannot do and who should not use it, beyond what the other facts say; for its page."""


@dataclass(frozen=True)
class Progress:
    """Where the training stands. ``step`` counts finished optimizer steps."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def fraction(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return self.step / self.total_steps if self.total_steps else 1.0

    @property
    def ends_epoch(self) -> bool:
        """True right after the last step of an epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0


class Calibration(ABC):
    """What a whole-model pruner may use: every layer's connections, and the model as a function of their weights.

    Attributes:
        layers: connections by layer name.
        batches: the calibration batches, ``(x, y)`` each.
        n_classes: classes of the task, or 0 for regression.
    """

    layers: Mapping[str, Connections]
    batches: Sequence[tuple[Tensor, Tensor]]
    n_classes: int

    @abstractmethod
    def forward(self, weights: Mapping[str, Tensor], x: Tensor, *, magnitudes: bool = False, batch_statistics: bool = False) -> Tensor:
        """Logits with each layer's ``(nnz,)`` weights replaced; differentiable twice; the model is in eval mode, and keeps nothing of ``x``.

        Args:
            x: computed in its dtype, if it is a floating one, whatever the model's own is.
            magnitudes: every other parameter enters by its magnitude (SynFlow).
            batch_statistics: batch norms normalise by the statistics of ``x``, as in training (GraSP).
        """

    @abstractmethod
    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """The training loss, a scalar."""

    @abstractmethod
    def input_norms(self) -> Mapping[str, Tensor]:
        """``(n_in,)`` Euclidean norm of every layer's inputs over the calibration batches."""


class Pruner(Plugin):
    """Scores connections; the core removes the lowest, ties by position.

    A subclass overrides ``score`` or, for a criterion that needs the whole model, sets ``needs_calibration`` and overrides ``score_all``.
    """

    family: ClassVar[str] = "pruner"
    needs_grad: ClassVar[bool] = False
    """``score`` reads ``conn.grad``."""
    needs_dense: ClassVar[bool] = False
    """Reads or writes ``conn.dense``; runs on ``masked`` only."""
    needs_calibration: ClassVar[bool] = False
    """``score_all`` is used in place of ``score``."""
    balanced_calibration: ClassVar[bool] = False
    """The calibration examples hold equally many of each class (GraSP)."""
    sequential: ClassVar[bool] = False
    """Layers are pruned one after another, input to output: ``score_all`` is called once per layer, with that layer alone in
    ``calibration.layers`` and the layers before it already pruned (Wanda)."""
    revives: ClassVar[bool] = False
    """``score_sites`` is used in place of ``score``: the topology is chosen anew from all sites (movement pruning). Also ``needs_dense``."""
    rounds: ClassVar[int] = 1
    """How often ``score_all`` is called on the way to the target, keeping ``density ** (round / rounds)`` each time (SynFlow: 100)."""
    per_row: ClassVar[bool] = False
    """Scores are compared within each output row only (Wanda)."""
    made_for: ClassVar[str] = ""
    """The ``distribution`` that its paper uses, where that is not the user's choice; a trial with another says so in its warnings (LAMP)."""
    made_for: ClassVar[str] = ""
    """The ``distribution`` that its paper uses, where that is not the user's choice; a trial with another says so in its warnings (LAMP)."""

    def score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` importance; low goes first."""
        raise TypeError(f"{type(self).__name__} defines neither score nor score_all")

    def score_all(self, calibration: Calibration) -> Mapping[str, Tensor]:
        """``(nnz,)`` importance for every layer."""
        return {name: self.score(conn) for name, conn in calibration.layers.items()}

    def score_sites(self, conn: Connections) -> Tensor:
        """``(n_out, n_in)`` importance of every site, from ``conn.dense``."""
        raise TypeError(f"{type(self).__name__} declares revives and does not define score_sites")

    def calibration_examples(self, n_classes: int) -> int:
        """How many training examples ``calibration.batches`` should hold, in batches of at most the training's size."""
        return 128

    def before_step(self, conn: Connections) -> None:
        """Called after every backward pass, before the optimizer's step: weights and gradients of one moment (movement pruning). May write
        into ``conn.state`` and ``conn.dense.state``."""

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """Called after every optimizer step, gradients still there; may write into ``conn.weight``, ``conn.state`` and ``conn.dense``."""


class Update(NamedTuple):
    """One topology change of one layer: which connections stay, and which sites are new."""

    keep: Tensor
    """``(nnz,)`` bool."""
    new: Tensor
    """``(2, k)`` int64; a site that was just dropped may stand here."""


class Rewirer(Plugin):
    """Drops and grows connections during training, at constant nnz unless it redistributes.

    A subclass overrides what its paper changes: usually ``drop_score`` or ``grow``; ``update`` for anything that is not drop-then-grow.
    A hyper-parameter below that a method does not have becomes a class fact, e.g. ``every: ClassVar[int] = 1``, and no user can set it.
    """

    family: ClassVar[str] = "rewirer"
    needs_grad: ClassVar[bool] = False
    """Reads ``conn.grad``."""
    needs_absent_grad: ClassVar[bool] = False
    """Calls ``conn.best_absent(k)``: the layer must look at the gradient of absent sites at an update."""
    needs_dense: ClassVar[bool] = False
    """Reads or writes ``conn.dense``; runs on ``masked`` only."""
    replaces_step: ClassVar[bool] = False
    """An update takes the place of the optimizer's step (RigL, arXiv 1911.11134, Algorithm 1)."""
    keeps_regrown: ClassVar[bool] = False
    """A connection that is dropped and grown in the same update keeps its weight and its optimizer slots."""
    revives: ClassVar[bool] = False
    """Absent weights keep their stored value, so that a connection may come back with it (Top-KAST, SR-STE). Also ``needs_dense``."""
    varies_nnz: ClassVar[bool] = False
    """An update may leave another nnz than ``n_target`` (SRigL's whole fan-in, MEST's bounds); the record shows what was realised."""
    needs_plain_sgd: ClassVar[bool] = False
    """Only defined for SGD without momentum, e.g. as a Langevin step (DEEP R)."""
    redistributes: ClassVar[bool] = False
    """Moves connections between layers; none of them can then hold a constant fan-in."""
    n_of_m_by: ClassVar[tuple[str, str] | None] = None
    """Its parameters n and m, where it keeps n of every m inputs: the density must be n/m in every layer (SR-STE)."""
    ablates_by: ClassVar[str] = ""
    """Its parameter that, unless it is 0, lets whole output units lose their connections; a constant fan-in cannot hold that (SRigL)."""
    fits_tiles: ClassVar[bool] = True
    """Dropping and growing may be done in whole tiles; False where each connection's own state decides, or ``update`` is overridden."""

    every: int | None = Field(100, ge=1, description="steps between updates; null: the end of every epoch")
    drop_fraction: float = Field(0.3, gt=0, le=1, description="share of a layer's connections dropped at the first update")
    stop: float = Field(0.75, gt=0, le=1, description="share of the training after which the topology stays")

    def first_density(self, density: float) -> float:
        """What a training starts with where ``density`` was asked (MEST: more); each layer's connections are multiplied alike.

        Raises:
            UserError: it cannot have that density.
        """
        return density

    def due(self, progress: Progress) -> bool:
        """True if an update takes place at ``progress.step`` (steps finished, or about to be replaced)."""
        every = self.every or progress.steps_per_epoch
        return progress.step > 0 and progress.step % every == 0 and progress.fraction < self.stop

    def drop_count(self, conn: Connections, progress: Progress) -> int:
        """How many to drop; default: the cosine of arXiv 1911.11134, Eq. 1, rounded down."""
        t = min(progress.fraction / self.stop, 1.0)
        return int(self.drop_fraction / 2 * (1 + math.cos(math.pi * t)) * conn.nnz + 1e-9)  # 225, not 224.99999999999997

    def drop_score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` importance; low goes first."""
        return conn.weight.abs()

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` different absent sites; ``conn`` holds the kept connections, so a just-dropped site counts as absent."""
        return conn.random_absent(k, rng)

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """``(k,)`` first weights of grown connections."""
        return conn.weight.new_zeros(sites.shape[1])

    def initial_state(self, conn: Connections) -> Mapping[str, Tensor]:
        """The method's ``(nnz,)`` tensors for ``conn``: called once for all connections, then for grown ones with their first weights."""
        return {}

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """One topology change; ``n_target`` is the layer's nnz afterwards: what was asked, or what the last ``redistribute`` gave it."""
        from sparsefleet.sparsity.select import keep_best

        n_drop = min(self.drop_count(conn, progress), conn.nnz)
        keep = keep_best(self.drop_score(conn), conn.nnz - n_drop)
        return Update(keep, self.grow(conn.select(keep), n_target - (conn.nnz - n_drop), rng))

    def n_peak(self, conn: Connections, progress: Progress) -> int:
        """The most connections that stand during the update of ``conn``, if that is more than before and after it; for the record."""
        return 0

    def redistribute(self, layers: Mapping[str, Connections], progress: Progress) -> Mapping[str, int] | None:
        """New nnz per layer with an unchanged total, or None to leave the budget where it is; called once, before the layers' ``update``."""
        return None

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """Called after every optimizer step, gradients still there; may write into ``conn.weight``, ``conn.state`` and ``conn.dense``."""


class Layer(Plugin):
    """Stores the weights of a module in one way.

    Class facts: ``execution`` names what is timed; ``kinds`` the module types it can replace; ``topology`` the patterns it can hold.
    """

    family: ClassVar[str] = "layer"
    execution: ClassVar[str] = ""
    """``dense``, ``masked_dense``, ``sparse_csr`` …; ``masked_dense`` never enters a speed-up."""
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
            UserError: it has connections for a layer that is not there.
        """

    def nnz_of(self, layer: str, shape: tuple[int, int], asked: int) -> int:
        """How many connections the layer gets: what the density asks, unless the connectivity settles it (given sites, a given fan-in)."""
        return asked

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
    """A non-linearity. The module may have an ``on_epoch()`` method, called at the end of each training epoch."""

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
