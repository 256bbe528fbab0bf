"""What a trial tells while it runs: curves of its topology, validation, hooks and pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsefleet.errors import Diverged
from sparsefleet.redact import redacted
from sparsefleet.trial import files
from sparsefleet.trial.active import active_figures
from sparsefleet.trial.mask_picture import picture_png
from sparsefleet.trial.masks import pack_step
from sparsefleet.trial.objective import evaluate
from sparsefleet.trial.observe import observe
from sparsefleet.trial.topology_curves import of_layers, tell_topology

if TYPE_CHECKING:
    from sparsefleet.trial.training import Training

_N_PICTURES = 5
_N_STEPS = 10


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
                log.add(redacted(name), step, float(value))
            else:
                log.warn(f"sparsefleet_measure gave {value} as {name} at step {step}: left out")
    last = step == training.total_steps
    if last:
        tell_topology(training, now=True)
    if last or epoch % max(1, spec.train.epochs // _N_PICTURES) == 0:
        save_pictures(training)
    if last or epoch % -(-spec.train.epochs // _N_STEPS) == 0:
        save_connections(training)


def tell_activations(training: Training) -> None:
    """How many activations the trained network leaves at zero on one batch of the test set, as curves of one point and as a fact."""
    x = training.splits.test.x[: training.spec.train.batch_size]
    kind = type(training.registry.build("activation", training.spec.activation).build(1))
    with torch.autocast(x.device.type, dtype=training.autocast or torch.bfloat16, enabled=training.autocast is not None):
        figures = active_figures(training.network.module, x, kind)
    if not figures:
        return
    training.log.note(training.step, "activations", **figures)
    for name in of_layers(list(figures)):
        training.log.add(name, training.step, figures[name])


def save_pictures(training: Training) -> None:
    """A picture of every sparse layer's connections as they are now."""
    folder = training.request.workdir / files.MASK_STEPS
    folder.mkdir(exist_ok=True)
    for name, module in training.network.sparse.items():
        picture = picture_png(module.matrix_shape, module.flat_sites().cpu())
        (training.request.workdir / files.picture_name(name, training.step)).write_bytes(picture)


def save_connections(training: Training) -> None:
    """The sparse layers' connections as they are now, as far as ``pack_step`` holds them: at most 12 times in a run, 12 MiB in all."""
    if not training.network.sparse:
        return
    folder = training.request.workdir / files.MASK_STEPS
    folder.mkdir(exist_ok=True)
    masks = ((name, (training.network.shapes[name], module.flat_sites())) for name, module in training.network.sparse.items())
    packed = pack_step(masks, {"method": training.spec.method.label, "seed": training.spec.seed, "step": training.step})
    (training.request.workdir / files.step_masks_name(training.step)).write_bytes(packed)
