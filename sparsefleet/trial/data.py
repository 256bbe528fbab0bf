"""Splits and batches of data that live in memory; every order is a function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsefleet.errors import IntegrityError, UserError
from sparsefleet.plugin import DataInfo, Dataset, TensorData
from sparsefleet.registry import Catalog
from sparsefleet.rng import Rng
from sparsefleet.trial.identity import data_digest, data_of
from sparsefleet.trial.request import TrialRequest


@dataclass(frozen=True)
class Splits:
    """The three splits on the trial's device; ``validation`` is None for ``validation: 0``."""

    info: DataInfo
    train: TensorData
    validation: TensorData | None
    test: TensorData


def load_splits(dataset: Dataset, request: TrialRequest, dtype: torch.dtype, plugins: Catalog) -> Splits:
    """The data of a trial. Which training examples become validation depends on the seed alone.

    Raises:
        IntegrityError: the files are not those of the trial key.
    """
    spec = request.spec
    for name, family, ref in data_of(spec, plugins):
        if name not in request.data:
            continue
        promised, found = request.data[name], data_digest(ref, plugins, request.data_root, family)
        if found != promised:
            raise IntegrityError(
                f"{family} {ref.name!r} on this machine is not the one that the trial was submitted with",
                cause=f"its digest is {found[:12]}, promised was {promised[:12]}",
                fix="give every node the same files, or submit the grid again",
            )
    train, test = (_place(dataset.load(request.data_root, split), request.device, dtype) for split in ("train", "test"))
    n = train.x.shape[0]
    n_validation = math.floor(spec.validation * n + 0.5)
    if n_validation >= n:
        raise UserError(f"validation {spec.validation} leaves no training example of {n}")
    validation = None
    if n_validation:
        order = torch.argsort(Rng(spec.seed, "validation").uniform(n), stable=True).to(train.x.device)
        held_out, rest = torch.sort(order[:n_validation]).values, torch.sort(order[n_validation:]).values
        validation = TensorData(train.x[held_out], train.y[held_out])
        train = TensorData(train.x[rest], train.y[rest])
    return Splits(dataset.info, train, validation, test)


def _place(data: TensorData, device: str, dtype: torch.dtype) -> TensorData:
    x = data.x.to(device, dtype) if data.x.is_floating_point() else data.x.to(device)
    y = data.y.to(device, dtype) if data.y.is_floating_point() else data.y.to(device)
    return TensorData(x, y)


def steps_per_epoch(n_train: int, batch_size: int, drop_last: bool) -> int:
    """Batches in an epoch; with ``drop_last`` a smaller last batch is left out."""
    full, rest = divmod(n_train, batch_size)
    return max(full + (0 if drop_last or not rest else 1), 1 if n_train else 0)


def batches(train: TensorData, *, batch_size: int, n_batches: int, seed: int, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches in the order that (seed, epoch) fixes, from batch ``skip`` on."""
    n = train.x.shape[0]
    order = torch.argsort(Rng(seed, "order", epoch).uniform(n), stable=True).to(train.x.device)
    for i in range(skip, n_batches):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        yield train.x[chosen], train.y[chosen]
