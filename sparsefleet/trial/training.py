"""The training loop of one trial: read ``Training.train`` and ``Training._train_step`` from top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsefleet.errors import Diverged, IntegrityError, InvalidMask, PluginError
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.nn.topology import Change, Topology
from sparsefleet.plugin import Dataset, Progress, Pruner, Rewirer
from sparsefleet.registry import Registry
from sparsefleet.rng import Rng, key_of
from sparsefleet.sparsity.schedule import density_at, pruning_steps
from sparsefleet.sparsity.vocabulary import OneShot
from sparsefleet.trial import account, files
from sparsefleet.trial.build import DTYPES, Network, build_network
from sparsefleet.trial.checkpoint import Checkpoint, load_checkpoint, put_aside, save_checkpoint
from sparsefleet.trial.data import batches, load_splits, steps_per_epoch
from sparsefleet.trial.gradient_curves import tell_gradient_flow
from sparsefleet.trial.log import Log
from sparsefleet.trial.masks import pack_masks
from sparsefleet.trial.objective import chance, evaluate, loss_of, lr_factor, make_optimizer
from sparsefleet.trial.pruning import convert_if_due, prune_to
from sparsefleet.trial.record import Accuracy, State
from sparsefleet.trial.request import TrialRequest
from sparsefleet.trial.snapshot import restore, snapshot
from sparsefleet.trial.spec import FineTune
from sparsefleet.trial.start import first_step, given_sites, take_weights
from sparsefleet.trial.tensor_file import write_tensors
from sparsefleet.trial.ticket import draw_ticket
from sparsefleet.trial.topology_curves import Watch, begin, tell_update
from sparsefleet.trial.watching import save_connections, save_pictures, tell_activations, tell_epoch

ProgressReport = Callable[[dict[str, Any]], None]
_REPORT_EVERY_S = 0.5


class Training:
    """The state of one running trial."""

    def __init__(self, request: TrialRequest, registry: Registry, log: Log, report: ProgressReport) -> None:
        self.request, self.spec, self.registry, self.log, self.report = request, request.spec, registry, log, report
        self.step = 0
        self.best_on_val: float | None = None
        self.last_on_val: float | None = None
        self.test: tuple[float, float] | None = None
        self.test_evals = 0
        self.before_fine_tuning: float | None = None
        self.converted = False
        self.watch = Watch()
        self.phases_s: dict[str, float] = {}
        self._last_report = self._last_checkpoint = time.monotonic()

    # Preparation

    def prepare(self) -> None:
        """Loads the data, builds the network, and takes up a checkpoint if there is one."""
        spec, clock = self.spec, time.monotonic()
        generator = (
            torch.default_generator if self.request.device == "cpu" else torch
        )  # torch.manual_seed alone takes 10 ms to note it for CUDA
        generator.manual_seed(key_of(spec.seed, "torch"))
        self.dataset: Dataset = self.registry.build("dataset", spec.dataset)
        self.splits = load_splits(self.dataset, self.request, DTYPES[spec.train.precision], self.registry.catalog)
        self.per_epoch = steps_per_epoch(self.splits.train.x.shape[0], spec.train.batch_size, spec.train.drop_last)
        wanted = spec.train.epochs * self.per_epoch
        self.total_steps = wanted if spec.train.max_steps is None else min(wanted, spec.train.max_steps)
        clock = self._phase("data", clock)
        checkpoint, warning = load_checkpoint(self.request.workdir, self.request.trial_key)
        if warning:
            self.log.warn(warning)
        self.pruner: Pruner | None = self.registry.build("pruner", spec.method.pruner) if spec.method.pruner else None
        self.rewirer: Rewirer | None = self.registry.build("rewirer", spec.method.rewirer) if spec.method.rewirer else None
        self.schedule = spec.method.schedule or OneShot()
        rewind = spec.method.rewind
        self.prunings = [] if not self.pruner else pruning_steps(OneShot(at=rewind.to) if rewind else self.schedule, self.total_steps)
        self.log.every = max(1, self.total_steps // 200)
        self.network = self._network(checkpoint)
        self.step = checkpoint.facts["step"] if checkpoint else first_step(spec, self.total_steps)
        self.optimizer = self.new_optimizer()
        self.topology = Topology(self.network.sparse, self.optimizer, spec.seed, self.network.shapes, self.network.nnz_asked)
        self._watch_always = bool(self.method and self.method.needs_dense)
        if self._watch_always:
            self.topology.watch_absent(True)
        if self.method:
            self.topology.prepare(self.method)
        begin(self, fresh=checkpoint is None)
        if checkpoint:
            with self._fitting():
                restore(self, checkpoint)
        else:
            if self.method:
                self.topology.start(self.method)
            save_connections(self)
            self._note_small_dense()
        self.network.module.train()
        self._phase("build", clock)

    @property
    def method(self) -> Pruner | Rewirer | None:
        """What changes the topology, if anything does."""
        return self.pruner or self.rewirer

    def _network(self, checkpoint: Checkpoint | None) -> Network:
        device, data_root = self.request.device, self.request.data_root
        if checkpoint:
            with self._fitting():
                self.converted = checkpoint.facts["converted"]
                storage = self.spec.layer.name if self.converted else None
                return build_network(
                    self.spec, sites=checkpoint.group("sites"), storage=storage, registry=self.registry, device=device, data_root=data_root
                )
        sites = given_sites(self.request, self.registry)
        network = build_network(self.spec, sites=sites, registry=self.registry, device=device, data_root=data_root)
        if sites is not None:
            network.nnz_asked.update({name: flat.numel() for name, flat in sites.items()})
        elif self.spec.start is not None and self.spec.start.gives == "weights":
            take_weights(network, self.request)
        return network

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """For what takes up a checkpoint: one that is whole and yet not of this network is put aside.

        Raises:
            IntegrityError: it was.
        """
        try:
            yield
        except (LookupError, TypeError, InvalidMask, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "state_dict" not in str(error):
                raise  # memory, for one
            put_aside(self.request.workdir)
            raise IntegrityError(
                "the checkpoint does not fit the trial", cause=f"{type(error).__name__}: {error}", fix="run it again: it was put aside"
            ) from error

    @property
    def _fine_tuning(self) -> FineTune | None:
        """How the training goes on from the last pruning, once that is done."""
        return self.spec.method.fine_tune if self.prunings and self.step >= self.prunings[-1] else None

    def new_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the phase that the training is in, without slots."""
        tuning = self._fine_tuning
        return make_optimizer(tuning.optimizer if tuning else self.spec.optimizer, self.spec.train, list(self.network.module.parameters()))

    def _prune_if_due(self) -> None:
        if self.pruner is None or self.step not in self.prunings or self.converted:
            return
        if self.spec.method.rewind is not None:
            draw_ticket(self)
        else:
            prune_to(self, density_at(self.schedule, self.step, self.total_steps, self.spec.density))
        if self.step == self.prunings[-1]:
            self._begin_last_phase()

    def _begin_last_phase(self) -> None:
        """The last pruning is done: what it cost is noted, and fine-tuning takes a new optimizer."""
        rewind = self.spec.method.rewind
        if (self.step > 0 or self.spec.start is not None) and not (rewind and rewind.what == "weights"):
            score = evaluate(self.network.module, self.splits.test, self.splits.info, self.autocast)
            self.before_fine_tuning = score.metric if math.isfinite(score.metric) else None
        if self._fine_tuning:
            self.optimizer = self.topology.optimizer = self.new_optimizer()

    def _lr(self) -> float:
        tuning = self._fine_tuning
        if tuning is None:
            return self.spec.optimizer.lr * lr_factor(self.spec.train.lr_schedule, self.step, self.total_steps)
        begun = self.prunings[-1]
        return tuning.optimizer.lr * lr_factor(tuning.lr_schedule, self.step - begun, self.total_steps - begun)

    def _note_small_dense(self) -> None:
        if self.spec.narrow_to_density is not None:
            n_params = sum(p.numel() for p in self.network.module.parameters())
            self.log.note(0, "narrowed", factor=self.network.width_factor, params=float(n_params))

    # Training

    def train(self) -> None:
        """Runs every step that is left."""
        spec, clock = self.spec, time.monotonic()
        if self.step == first_step(spec, self.total_steps):  # a checkpoint is taken after its step's pruning
            self._prune_if_due()
        while self.step < self.total_steps:
            epoch, skip = divmod(self.step, self.per_epoch)
            for x, y in batches(
                self.splits.train,
                batch_size=spec.train.batch_size,
                n_batches=self.per_epoch,
                seed=spec.seed,
                epoch=epoch,
                skip=skip,
            ):
                if self.step >= self.total_steps:
                    break
                try:
                    self._train_step(self._augmented(x), y)
                    self._prune_if_due()
                    convert_if_due(self)
                except PluginError as error:
                    self._raise_if_not_finite(error)
                    raise
                if self.step % self.per_epoch == 0 or self.step == self.total_steps:
                    self._end_epoch((x, y))
                self._checkpoint_if_due()
        if self.total_steps == 0:
            convert_if_due(self)
        self._phase("train", clock)

    def _raise_if_not_finite(self, error: PluginError) -> None:
        """A step that blew up the weights is a divergence, whoever meets the NaN first."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.module.parameters()):
            raise Diverged(self.step, math.nan) from error

    def _augmented(self, x: Tensor) -> Tensor:
        return self.dataset.augment(x, Rng(self.spec.seed, "augment", self.step)) if self.spec.train.augment else x

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward, then the optimizer's step or the update that takes its place."""
        rewirer, optimizer = self.rewirer, self.optimizer
        lr = self._lr()
        for group in optimizer.param_groups:
            group["lr"] = lr
        before, after = self._progress(self.step), self._progress(self.step + 1)
        in_place = rewirer is not None and rewirer.replaces_step and rewirer.due(before)
        follows = rewirer is not None and not rewirer.replaces_step and rewirer.due(after)
        watch = rewirer is not None and rewirer.needs_absent_grad and (in_place or follows)
        if watch or self._watch_always:
            self.topology.watch_absent(True)  # from here on: what was seen before does not count
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, y)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(self.step, value)
        loss.backward()  # type: ignore[no-untyped-call]
        tell_gradient_flow(self)
        if not in_place:
            optimizer.step()
            self.topology.enforce()
            if self.method is not None and not self.converted:
                self.topology.on_step(self.method, lr, self.step)
        self.step += 1
        if rewirer is not None and (in_place or follows):
            self.note_changes(self.topology.rewire(rewirer, before if in_place else after))
        if watch and not self._watch_always:
            self.topology.watch_absent(False)
        self.log.add_loss(self.step, value)
        self._report_now(value)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The training loss of one batch."""
        bf16 = self.spec.train.precision == "bf16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self.network.module(x)
            return loss_of(output.float() if bf16 else output, y, self.splits.info, self.spec.train.label_smoothing)

    def _progress(self, step: int) -> Progress:
        return Progress(step, self.total_steps, self.per_epoch)

    def note_changes(self, changes: list[Change]) -> None:
        """An update of the topology took place."""
        tell_update(self, changes)

    def _end_epoch(self, batch: tuple[Tensor, Tensor]) -> None:
        for module in self.network.module.modules():
            on_epoch = getattr(module, "on_epoch", None)
            if callable(on_epoch):
                on_epoch()
        tell_epoch(self, batch)
        if -(-self.step // self.per_epoch) == self.spec.train.test_epoch and self.step % self.per_epoch == 0:
            self._test()

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype that forward passes are cast to, if any."""
        return torch.bfloat16 if self.spec.train.precision == "bf16" else None

    @property
    def metric(self) -> str:
        """``top1`` or ``mse``."""
        return "top1" if self.splits.info.task == "classification" else "mse"

    def _report_now(self, loss: float) -> None:
        if time.monotonic() - self._last_report >= _REPORT_EVERY_S:
            self._last_report = time.monotonic()
            facts = {"step": self.step, "total_steps": self.total_steps, "epoch": self.step // max(self.per_epoch, 1), "loss": loss}
            self.report({**facts, "accuracy": self.last_on_val})

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() - self._last_checkpoint >= self.request.checkpoint_every_s and self.step < self.total_steps:
            save_checkpoint(self.request.workdir, *snapshot(self))
            self._last_checkpoint = time.monotonic()

    # The end

    def finish(self) -> None:
        """Tests once, and saves the model and the masks."""
        clock = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)  # no step will use them, and a wide network's gradients are as large as its weights
        if self.test is None:
            self._test()
        tell_activations(self)
        clock = self._phase("evaluate", clock)
        write_tensors(self.request.workdir / files.MODEL, self.network.module.state_dict())
        if self.network.sparse:
            masks = ((name, (self.network.shapes[name], module.flat_sites())) for name, module in self.network.sparse.items())
            packed = pack_masks(masks, {"method": self.spec.method.label, "seed": self.spec.seed, "step": self.step})
            packed.write(self.request.workdir)
            if self.total_steps == 0:  # no epoch has ended
                save_pictures(self)
                save_connections(self)
        (self.request.workdir / files.ENVIRONMENT).write_text(json.dumps(fingerprint(), indent=1, sort_keys=True))
        self._phase("save", clock)

    def _test(self) -> None:
        score = evaluate(self.network.module, self.splits.test, self.splits.info, self.autocast)
        self.test, self.test_evals = (score.metric, score.loss), self.test_evals + 1
        if not math.isfinite(score.loss):
            raise Diverged(self.step, score.loss)
        declared, epoch = self.spec.train.test_epoch, -(-self.step // max(self.per_epoch, 1))
        if declared is None:
            return
        if self.step == declared * self.per_epoch:
            self.log.note(self.step, "tested the declared epoch", epoch=float(epoch))
        else:
            self.log.warn(f"the declared epoch {declared} was never reached; the network tested is that after epoch {epoch}")

    def counts(self) -> Any:
        """Sizes, or None before the network stands."""
        return account.counts(self.network, self.optimizer, self.spec) if hasattr(self, "topology") else None

    def accuracy(self, state: State) -> Accuracy | None:
        """What was reached; a diverged trial has no test figure and counts as chance."""
        if not hasattr(self, "splits"):
            return None
        ended_well = state == State.SUCCEEDED and self.test is not None
        return Accuracy(
            metric="top1" if self.metric == "top1" else "mse",
            test=self.test[0] if ended_well and self.test else None,
            test_loss=self.test[1] if ended_well and self.test else None,
            test_evals=self.test_evals,
            n_test=self.splits.test.x.shape[0],
            before_fine_tuning=self.before_fine_tuning,
            best_on_val=self.best_on_val,
            last_on_val=self.last_on_val,
            epochs=self.step // self.per_epoch if self.per_epoch else 0,
            steps=self.step,
            diverged=state == State.DIVERGED,
            chance=chance(self.splits.info, self.splits.test.y),
        )

    def _phase(self, name: str, since: float) -> float:
        now = time.monotonic()
        self.phases_s[name] = self.phases_s.get(name, 0.0) + now - since
        return now
