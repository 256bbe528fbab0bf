"""Checks for data sets. Their files are read where ``SPARSEFLEET_DATA`` says; absent files must be explained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sparsefleet.errors import UserError
from sparsefleet.home import data_root
from sparsefleet.plugin import Dataset, TensorData
from sparsefleet.rng import Rng
from sparsefleet.testing.expect import expect, fail
from sparsefleet.testing.opened import opened_below
from sparsefleet.testing.salted import salted_hash
from sparsefleet.testing.samples import disturb_global_seeds

_EXACT = 1e-5
"""Below it a mean of 0 and a deviation of 1 are no coincidence."""


def invents_examples(plugin: Dataset) -> None:
    """``fake(n)`` has the shapes and types of the real data, the same at every call."""
    data = plugin.fake(7)
    _check_split(plugin, data, 7)
    expect(torch.equal(data.x, plugin.fake(7).x), "the same examples at every call", "they differ", "seed a generator of your own")


def invents_any_number(plugin: Dataset) -> None:
    """``fake`` gives none and one as well; many examples are different, and of a classification they are not all of one class."""
    for n in (0, 1):
        _check_split(plugin, plugin.fake(n), n)
    data = plugin.fake(64)
    n_different = torch.unique(data.x.flatten(1), dim=0).shape[0]
    expect(n_different > 1, "different examples", f"{n_different} of 64", "draw each example: timings and probes need numbers that vary")
    n_labels = torch.unique(data.y, dim=0).shape[0]
    expect(n_labels > 1 or plugin.info.n_outputs == 1, "more than one label among 64", n_labels, "draw labels from all of them")


def tells_its_shapes(plugin: Dataset) -> None:
    """``info`` is always the same, says at least one input and one output, and can be written as JSON."""
    info = plugin.info
    plugin.fake(3)
    expect(
        plugin.info == info, "the same info at every time", f"{info}, then {plugin.info}", "compute it from parameters, never from files"
    )
    positive = info.n_outputs >= 1 and all(n >= 1 for n in info.input_shape) and info.vocabulary >= 0
    expect(positive, "at least one output and one input per dimension", info, "shapes without the batch dimension")
    plain = [*info.input_shape, info.n_outputs, info.vocabulary]
    expect(
        all(type(n) is int for n in plain), "whole numbers of Python", [type(n).__name__ for n in plain], "int(n) of numpy's and torch's"
    )
    expect(info.task in ("classification", "regression"), "classification or regression", repr(info.task), "one of these")


def augments_by_its_stream_alone(plugin: Dataset) -> None:
    """``augment`` keeps the shape, draws from its stream only, and leaves the batch as it was."""
    x = plugin.fake(5).x
    before, seen = x.clone(), []
    for seed in (1, 2):
        disturb_global_seeds(seed)
        seen.append(plugin.augment(x, Rng("augment")).clone())
        expect(torch.equal(x, before), "an unchanged batch", "it was written to", "x.clone() first")
    expect(seen[0].shape == x.shape and seen[0].dtype == x.dtype, f"{x.dtype} of shape {tuple(x.shape)}", tuple(seen[0].shape), "keep both")
    expect(torch.equal(*seen), "equal batches from equal streams", "they differ", "draw from rng only")
    same = (seen[0].flatten(1)[:, None] == x.flatten(1)).all(2)
    moved = same.any(1) & ~same.diagonal()
    expect(
        not bool(moved.any()), "each example in its place", f"{int(moved.sum())} in another's", "labels do not move: keep the batch's order"
    )


def explains_absent_files(plugin: Dataset) -> None:
    """Without its files a data set says how to get them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nothing-here"
        try:
            paths = list(plugin.files(root))
        except UserError as error:
            expect(
                not root.exists(),
                "files() to look only",
                "it wrote below the root",
                "say in the fix how to get the files; load nothing down",
            )
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
    listed = [list(plugin.files(data_root())) for _ in range(2)]
    expect(listed[0] == listed[1], "the same files in the same order", "others", "sorted(…): a folder lists its files in any order")
    with opened_below(data_root()) as opened:
        train, test = _load(plugin, "train"), _load(plugin, "test")
    others = sorted(opened - {path.resolve() for path in listed[0]})
    mend = "name every file in files(): their bytes are in the trial's key"
    expect(not others, "files() to list all that load() reads", f"it opens {', '.join(path.name for path in others[:4])} as well", mend)
    splits: tuple[tuple[Literal["train", "test"], TensorData], ...] = (("train", train), ("test", test))
    for split, first in splits:
        with salted_hash(type(plugin).__module__.partition(".")[0], 1):
            again = _load(plugin, split)
        same = torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
        expect(
            same,
            f"equal {split} examples in two loads",
            "they differ",
            "shuffle elsewhere; split by position or a seed of your own, never by hash()",
        )
    n = min(len(train.x), len(test.x))
    expect(not torch.equal(train.x[:n], test.x[:n]), "different training and test sets", "equal", "look at the split argument")
    if plugin.info.task == "classification":
        missing = plugin.info.n_outputs - torch.unique(train.y).numel()
        expect(
            missing == 0, f"examples of all {plugin.info.n_outputs} classes", f"{missing} have none", "number classes from 0, without gaps"
        )


def keeps_its_splits_apart(plugin: Dataset) -> None:
    """No test example is in the training set, and the test set is not standardised by its own mean: the test set is not known beforehand."""
    try:
        list(plugin.files(data_root()))
    except UserError:
        return
    train, test = _load(plugin, "train"), _load(plugin, "test")
    if plugin.info.vocabulary or not len(train.y) or not len(test.y):
        return
    keys = [_fingerprints(data.x) for data in (train, test)]
    doubled = 1 - torch.unique(keys[0]).numel() / len(keys[0])  # as often as examples come twice by themselves
    shared = float(torch.isin(keys[1], keys[0]).double().mean())
    mend = "divide the examples first, and everything else afterwards"
    expect(shared <= 0.1 + 2 * doubled, "test examples that are not in the training set", f"{shared:.0%} of them are", mend)
    values = test.x.double()
    centred = abs(float(values.mean())) < _EXACT and min(abs(float(values.std(correction=c)) - 1) for c in (0, 1)) < _EXACT
    by_feature = bool((values.mean(0).abs() < _EXACT).all()) and values[0].numel() > 1
    few = torch.unique(values[:1000]).numel() <= 16  # a design of -1 and 1 is centred by itself
    mend = "mean and deviation of the training set, for both splits"
    expect(few or not (centred or by_feature), "a test set that is not exactly centred", "means of 0, of its own", mend)


def _fingerprints(x: Tensor) -> Tensor:
    """``(n,)`` float64: equal for equal examples, and hardly ever for others."""
    flat = x.flatten(1).double()
    return flat @ Rng("fingerprint").normal(flat.shape[1]).double()


def _load(plugin: Dataset, split: Literal["train", "test"]) -> TensorData:
    data = plugin.load(data_root(), split)
    _check_split(plugin, data, len(data.y))
    return data


def _check_split(plugin: Dataset, data: TensorData, n: int) -> None:
    info = plugin.info
    expect(data.x.shape == (n, *info.input_shape), f"x of shape ({n}, {info.input_shape})", tuple(data.x.shape), "as info.input_shape says")
    if info.vocabulary:
        known = data.x.dtype == torch.int64 and (n == 0 or (int(data.x.min()) >= 0 and int(data.x.max()) < info.vocabulary))
        expect(
            known,
            f"int64 tokens in [0, {info.vocabulary})",
            f"{data.x.dtype} up to {data.x.amax().item() if n else 0}",
            "number unknown words too",
        )
    else:
        expect(data.x.dtype == torch.float32, "float32 inputs", str(data.x.dtype), "x.float(), or say info.vocabulary")
        expect(bool(torch.isfinite(data.x).all()), "finite inputs", "NaN or infinity", "check the normalisation")
    if info.task == "regression":
        expect(data.y.shape == (n, info.n_outputs), f"y of shape ({n}, {info.n_outputs})", tuple(data.y.shape), "as info says")
        return
    expect(data.y.shape == (n,) and data.y.dtype == torch.int64, f"y: int64 of shape ({n},)", f"{data.y.dtype}", "y.long()")
    inside = n == 0 or (int(data.y.min()) >= 0 and int(data.y.max()) < info.n_outputs)
    expect(inside, f"classes in [0, {info.n_outputs})", sorted(set(data.y.tolist()))[:12], "number the classes from 0")


CHECKS = (
    invents_examples,
    invents_any_number,
    tells_its_shapes,
    augments_by_its_stream_alone,
    explains_absent_files,
    loads_what_it_says,
    keeps_its_splits_apart,
)
