"""Methods: what decides which connections a network has. A pruner scores them, a rewirer drops and grows them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field

from sparsefleet.plugin_base import Plugin

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefleet.connections import Connections
    from sparsefleet.rng import Rng


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
    What it leaves alone drops the smallest ``|w|``, grows as many random absent sites and starts them at 0.

    A training step is: backward pass, optimizer's step, ``on_step`` of every layer, then, where ``due``, ``redistribute`` once and ``update``
    of every layer. With ``replaces_step`` an update comes right after the backward pass, and that step has neither optimizer's step nor ``on_step``.

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
    """An update may leave another nnz than ``n_target`` (SRigL's whole fan-in, MEST's bounds); the record shows what was realised. A method
    that starts with another density (``first_density``) must declare it."""
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
    fits_fan_in: ClassVar[bool] = True
    """An update leaves equally many connections per output unit where ``conn.constant_fan_in``; False where an ``update`` of its own cannot."""

    every: int | None = Field(100, ge=1, description="steps between updates; null: the end of every epoch")
    drop_fraction: float = Field(0.3, gt=0, le=1, description="share of a layer's connections dropped at the first update")
    stop: float = Field(0.75, gt=0, le=1, description="share of the training after which the topology stays")

    def first_density(self, density: float) -> float:
        """What a training starts with where ``density`` was asked (MEST: more); each layer's connections are multiplied alike, up to all
        of its sites, and what a full layer cannot take goes nowhere: the total is then less.

        Another value than ``density`` needs ``varies_nnz``: otherwise every update would keep what the start gave. A plan asks this as well.

        Raises:
            UserError: it cannot have that density; a plan skips the trial with this reason.
        """
        return density

    def due(self, progress: Progress) -> bool:
        """True if an update takes place at ``progress.step`` (steps finished, or about to be replaced).

        Default: at every ``every``-th step before the share ``stop`` of the training, so neither at ``stop`` itself nor after the last step.
        One of its own is also asked after the last step, unless it ``replaces_step``.
        """
        every = self.every or progress.steps_per_epoch
        return progress.step > 0 and progress.step % every == 0 and progress.fraction < self.stop

    def drop_count(self, conn: Connections, progress: Progress) -> int:
        """How many to drop; default: the cosine of arXiv 1911.11134, Eq. 1, rounded down; 0 from ``stop`` on."""
        t = min(progress.fraction / self.stop, 1.0)
        return int(self.drop_fraction / 2 * (1 + math.cos(math.pi * t)) * conn.nnz + 1e-9)  # 225, not 224.99999999999997

    def drop_score(self, conn: Connections) -> Tensor:
        """``(nnz,)`` importance; low goes first, of equals the later position. Default: ``|w|``."""
        return conn.weight.abs()

    def grow(self, conn: Connections, k: int, rng: Rng) -> Tensor:
        """``(2, k)`` different absent sites; ``conn`` holds the kept connections, so a just-dropped site counts as absent. Default: random ones."""
        return conn.random_absent(k, rng)

    def grown_weight(self, conn: Connections, sites: Tensor, rng: Rng) -> Tensor:
        """``(k,)`` first weights of grown connections; default: 0."""
        return conn.weight.new_zeros(sites.shape[1])

    def initial_state(self, conn: Connections) -> Mapping[str, Tensor]:
        """The method's ``(nnz,)`` tensors for ``conn``: called once for all connections, then for grown ones with their first weights."""
        return {}

    def update(self, conn: Connections, progress: Progress, rng: Rng, n_target: int) -> Update:
        """One topology change, described and not made: ``conn`` stays as it is, its ``state`` and ``memory`` too.

        Where ``conn.constant_fan_in``, an update of its own must leave every output unit with equally many connections, or the class says
        ``fits_fan_in = False``: drop as it likes and grow ``conn.select(keep).best_absent(k)`` or ``random_absent(k)``, which fill the
        units up; they raise unless what stands then is a multiple of ``n_out`` and no unit has kept more than its part.

        Args:
            n_target: the layer's nnz afterwards. What ``redistribute`` gave it just now, if it did; else, with ``varies_nnz``
                or on tiles, what was asked of the layer, however many there are; else ``conn.nnz``.
        """
        from sparsefleet.sparsity.select import keep_best

        n_drop = min(self.drop_count(conn, progress), conn.nnz)
        keep = keep_best(self.drop_score(conn), conn.nnz - n_drop)
        return Update(keep, self.grow(conn.select(keep), n_target - (conn.nnz - n_drop), rng))

    def n_peak(self, conn: Connections, progress: Progress) -> int:
        """The most connections that stand during the update of ``conn``, if that is more than before and after it; for the record."""
        return 0

    def redistribute(self, layers: Mapping[str, Connections], progress: Progress) -> Mapping[str, int] | None:
        """New nnz per layer, or None to leave the budget where it is; called once, before the layers' ``update``.

        The new ones sum to what all layers together hold now, which is not what was asked where a start or an update was denser.
        """
        return None

    def on_step(self, conn: Connections, lr: float, rng: Rng) -> None:
        """Called after every optimizer step and before a coming ``update``, gradients still there.

        May write into ``conn.weight``, ``conn.state``, ``conn.memory`` (e.g. a scalar per layer) and ``conn.dense``.
        """
