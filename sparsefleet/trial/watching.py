"""What a trial tells while it runs: curves of its topology, validation, hooks and pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from sparsefleet.errors import Diverged
from sparsefleet.nn.topology import Change
from sparsefleet.trial import files
from sparsefleet.trial.mask_picture import picture_png
from sparsefleet.trial.objective import evaluate
from sparsefleet.trial.observe import observe

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training

_N_PICTURES = 5


def tell_changes(training: Training, changes: list[Change]) -> None:
    """The curves that follow from one update of the topology."""
    log, step = training.log, training.step
    log.add("density", step, training.topology.nnz / training.topology.n_sites, thin=True)
    log.add_sum("connections_dropped_total", step, sum(change.n_dropped for change in changes))
    log.add_sum("connections_grown_total", step, sum(change.n_grown for change in changes))


def tell_epoch(training: Training, batch: tuple[Tensor, Tensor]) -> None:
    """The validation figures, what observing hooks measure, and the mask pictures, after an epoch.

    Raises:
        Diverged: the validation loss is not finite.
    """
    log, step, spec = training.log, training.step, training.spec
    epoch = -(-step // training.per_epoch)
    if training.splits.validation is not None:
        score = evaluate(training.network.module, training.splits.validation, training.splits.info, training.autocast)
        if not math.isfinite(score.loss):
            raise Diverged(step, score.loss)
        log.add("validation_loss", step, score.loss)
        log.add("validation_" + training.metric, step, score.metric)
        training.last_on_val = score.metric
        better = max if training.metric == "top1" else min
        training.best_on_val = score.metric if training.best_on_val is None else better(training.best_on_val, score.metric)
    observed = observe(
        training.registry, log, "sparsefleet_measure", trial=spec.to_json(), model=training.network.module, batch=batch, step=step
    )
    for _, values in observed:
        for name, value in dict(values).items():
            if math.isfinite(float(value)):
                log.add(name, step, float(value))
            else:
                log.warn(f"sparsefleet_measure gave {value} as {name} at step {step}: left out")
    if epoch % max(1, spec.train.epochs // _N_PICTURES) == 0 or step == training.total_steps:
        save_pictures(training)


def save_pictures(training: Training) -> None:
    """A picture of every sparse layer's connections as they are now."""
    folder = training.request.workdir / files.MASK_STEPS
    folder.mkdir(exist_ok=True)
    for name, module in training.network.sparse.items():
        picture = picture_png(module.matrix_shape, module.flat_sites().cpu())
        (training.request.workdir / files.picture_name(name, training.step)).write_bytes(picture)
