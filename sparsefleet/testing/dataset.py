"""Checks for data sets. Their files are read where ``SPARSEFLEET_DATA`` says; absent files must be explained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch

from sparsefleet.errors import UserError
from sparsefleet.home import data_root
from sparsefleet.plugin import Dataset, TensorData
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.samples import disturb_global_seeds


def invents_examples(plugin: Dataset) -> None:
    """``fake(n)`` has the shapes and types of the real data, the same at every call."""
    data = plugin.fake(7)
    _check_split(plugin, data, 7)
    expect(torch.equal(data.x, plugin.fake(7).x), "the same examples at every call", "they differ", "seed a generator of your own")


def augments_by_its_stream_alone(plugin: Dataset) -> None:
    """``augment`` keeps the shape, draws from its stream only, and leaves the batch as it was."""
    x = plugin.fake(5).x
    before, seen = x.clone(), []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(plugin.augment(x, Rng("augment")))
    expect(seen[0].shape == x.shape and seen[0].dtype == x.dtype, f"{x.dtype} of shape {tuple(x.shape)}", tuple(seen[0].shape), "keep both")
    expect(torch.equal(*seen), "equal batches from equal streams", "they differ", "draw from rng only")
    expect(torch.equal(x, before), "an unchanged batch", "it was written to", "x.clone() first")


def explains_absent_files(plugin: Dataset) -> None:
    """Without its files a data set says how to get them."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = list(plugin.files(Path(folder) / "nothing-here"))
        except UserError as error:
            expect(bool(error.fix), "a UserError with a fix", repr(error.what), "UserError(..., fix='how to get the files')")
            return
        except Exception as error:  # noqa: BLE001  whatever it raises is the finding
            fail("a UserError", repr(error), "look for the files before reading them, and raise UserError(..., fix=...)")
        missing = [path for path in paths if not path.is_file()]
        expect(not missing, "files that exist, or a UserError", missing, "raise UserError when files are absent")


def loads_what_it_says(plugin: Dataset) -> None:
    """Shapes, types and classes are those of ``info``; two loads are equal; training and test set differ."""
    try:
        list(plugin.files(data_root()))
    except UserError:
        return  # explains_absent_files has judged that
    train = _load(plugin, "train")
    test = _load(plugin, "test")
    expect(torch.equal(test.x, _load(plugin, "test").x), "equal examples in two loads", "they differ", "shuffle and augment elsewhere")
    n = min(len(train.x), len(test.x))
    expect(not torch.equal(train.x[:n], test.x[:n]), "different training and test sets", "equal", "look at the split argument")


def _load(plugin: Dataset, split: Literal["train", "test"]) -> TensorData:
    data = plugin.load(data_root(), split)
    _check_split(plugin, data, len(data.y))
    return data


def _check_split(plugin: Dataset, data: TensorData, n: int) -> None:
    info = plugin.info
    expect(data.x.shape == (n, *info.input_shape), f"x of shape ({n}, {info.input_shape})", tuple(data.x.shape), "as info.input_shape says")
    if info.vocabulary:
        known = data.x.dtype == torch.int64 and (n == 0 or (int(data.x.min()) >= 0 and int(data.x.max()) < info.vocabulary))
        expect(known, f"int64 tokens in [0, {info.vocabulary})", f"{data.x.dtype} up to {int(data.x.max())}", "number unknown words too")
    else:
        expect(data.x.is_floating_point(), "float inputs", str(data.x.dtype), "x.float(), or say info.vocabulary")
        expect(bool(torch.isfinite(data.x).all()), "finite inputs", "NaN or infinity", "check the normalisation")
    if info.task == "regression":
        expect(data.y.shape == (n, info.n_outputs), f"y of shape ({n}, {info.n_outputs})", tuple(data.y.shape), "as info says")
        return
    expect(data.y.shape == (n,) and data.y.dtype == torch.int64, f"y: int64 of shape ({n},)", f"{data.y.dtype}", "y.long()")
    inside = n == 0 or (int(data.y.min()) >= 0 and int(data.y.max()) < info.n_outputs)
    expect(inside, f"classes in [0, {info.n_outputs})", sorted(set(data.y.tolist()))[:12], "number the classes from 0")


CHECKS = (invents_examples, augments_by_its_stream_alone, explains_absent_files, loads_what_it_says)
