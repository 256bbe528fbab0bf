"""The mask artifact: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from sparsefleet.errors import IntegrityError, InvalidMask
from sparsefleet.trial.files import MANIFEST, MASKS, parse_picture_name, picture_name
from sparsefleet.trial.mask_picture import mask_picture, picture_png
from sparsefleet.trial.masks import LayerMask, diff_masks, load_masks, pack_masks

META = {"method": "set", "seed": 1, "step": 60}
SHAPE = (3, 4)
FLAT = torch.tensor([0, 5, 11])


def written(folder: Path, masks: dict[str, tuple[tuple[int, ...], torch.Tensor]]) -> Path:
    folder.mkdir(exist_ok=True)
    pack_masks(masks, META).write(folder)  # type: ignore[arg-type]
    return folder


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, ...], torch.Tensor]:
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=2, max_size=4)))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 2**20)), draw(st.integers(1, 2**40)))
    flat = draw(st.sets(st.integers(0, math.prod(shape) - 1), max_size=60))
    return shape, torch.tensor(sorted(flat), dtype=torch.int64)


@settings(deadline=None)
@given(st.dictionaries(st.text("abc.01", min_size=1, max_size=6), layers(), max_size=4))
def test_what_is_written_is_read(masks: dict[str, tuple[tuple[int, ...], torch.Tensor]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name), masks)
        read = load_masks(folder)
        assert {name: (mask.shape, mask.flat.tolist()) for name, mask in read.items()} == {
            name: (shape, flat.tolist()) for name, (shape, flat) in masks.items()
        }
        again = pack_masks({name: tuple(mask) for name, mask in read.items()}, META)  # type: ignore[arg-type, misc]
        assert (folder / MASKS).read_bytes() == again.tensors


def test_the_manifest_says_how_to_read_it_without_us(tmp_path: Path) -> None:
    dense = torch.arange(0, 4096, 2)
    sparse = torch.arange(0, 10**12, 10**10)
    folder = written(tmp_path, {"bits": ((64, 64), dense), "delta": ((10**6, 10**6), sparse)})
    manifest, tensors = json.loads((folder / MANIFEST).read_text()), load_file(folder / MASKS)
    assert {name: layer["encoding"] for name, layer in manifest["layers"].items()} == {"bits": "bits", "delta": "delta"}
    assert manifest["layers"]["delta"]["dtype"] == "int64"
    assert (manifest["method"], manifest["seed"], manifest["step"], manifest["nnz"]) == ("set", 1, 60, 2048 + 100)
    assert np.flatnonzero(np.unpackbits(tensors["bits"].numpy(), bitorder="little")).tolist() == dense.tolist()
    assert torch.cumsum(tensors["delta"].long(), 0).tolist() == sparse.tolist()


@pytest.mark.parametrize(
    ("flat", "encoding", "n_bytes"),
    [
        (torch.arange(0, 10**6, 10), "delta", 100_000),  # gaps fit a byte, one byte per connection
        (torch.arange(0, 10**6, 5), "bits", 125_000),  # 200,000 connections: one bit per site is less
        (torch.arange(0, 10**6, 1000), "delta", 2_000),
        (torch.tensor([0, 999_999]), "delta", 8),
        (torch.zeros(0, dtype=torch.int64), "delta", 0),
    ],
)
def test_the_smaller_way_is_taken(flat: torch.Tensor, encoding: str, n_bytes: int) -> None:
    layer = pack_masks({"0": ((1000, 1000), flat)}, META).manifest["layers"]["0"]  # type: ignore[arg-type]
    assert (layer["encoding"], layer["bytes"]) == (encoding, n_bytes)


@pytest.mark.parametrize(
    ("shape", "flat", "said"),
    [
        (SHAPE, torch.tensor([0, 12]), "outside the 12 sites"),
        (SHAPE, torch.tensor([-1, 3]), "outside the 12 sites"),
        (SHAPE, torch.tensor([3, 3]), "1 of 2 positions are out of order or there twice"),
        (SHAPE, torch.tensor([5, 3]), "out of order"),
        (SHAPE, torch.tensor([0.0, 3.0]), r"must be \(nnz,\) int64"),
        (SHAPE, torch.tensor([[0, 3]]), r"must be \(nnz,\) int64"),
        ((3, 0), FLAT, "not the shape of a weight"),
        ((2**40, 2**40), FLAT, "not the shape of a weight"),
        ((), FLAT, "not the shape of a weight"),
    ],
)
def test_a_mask_that_cannot_be_right_is_not_written(shape: tuple[int, ...], flat: torch.Tensor, said: str) -> None:
    with pytest.raises(InvalidMask, match=said):
        pack_masks({"0": (shape, flat)}, META)  # type: ignore[arg-type]


def test_the_meta_must_say_where_it_comes_from() -> None:
    with pytest.raises(InvalidMask, match="lacks seed, step"):
        pack_masks({}, {"method": "set"})


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    flats = {"0": ((40, 40), torch.arange(0, 1600, 3)), "1": ((40, 400), torch.arange(0, 16000, 160))}
    folder = written(tmp_path, flats)
    original = load_masks(folder)
    random = np.random.default_rng(0)
    for name in (MASKS, MANIFEST):
        whole = (folder / name).read_bytes()
        for at in random.integers(0, len(whole) * 8, 120):
            bad = bytearray(whole)
            bad[at // 8] ^= 1 << (at % 8)
            (folder / name).write_bytes(bytes(bad))
            _is_refused_or_the_same(folder, original)
        for length in random.integers(0, len(whole) - 1, 40):
            (folder / name).write_bytes(whole[:length])
            _is_refused_or_the_same(folder, original)
        (folder / name).write_bytes(whole)
    assert load_masks(folder).keys() == original.keys()


def _is_refused_or_the_same(folder: Path, original: dict[str, LayerMask]) -> None:
    try:
        read = load_masks(folder)
    except IntegrityError:
        return
    assert all(torch.equal(read[name].flat, mask.flat) and read[name].shape == mask.shape for name, mask in original.items())


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("encoding", "pickle"),
        ("dtype", "int32"),
        ("shape", [4, 3]),
        ("shape", [2**31, 2**31]),
        ("nnz", 4),
        ("digest", "0" * 64),
        ("shape", "ab"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: str, value: object) -> None:
    folder = written(tmp_path, {"0": (SHAPE, FLAT)})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["layers"]["0"][change] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError):
        load_masks(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "sf-masks/2"}',
        '{"schema": "sf-masks/1", "layers": []}',
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str | bytes) -> None:
    folder = written(tmp_path, {"0": (SHAPE, FLAT)})
    (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IntegrityError):
        load_masks(folder)


def test_another_layer_in_the_file_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, {"0": (SHAPE, FLAT)})
    save_file({"0": torch.zeros(2, dtype=torch.uint8), "1": torch.zeros(1)}, folder / MASKS)
    with pytest.raises(IntegrityError, match="different layers: \\['1'\\]"):
        load_masks(folder)


def test_a_difference_is_counted_per_layer() -> None:
    before = {"0": LayerMask(SHAPE, torch.tensor([0, 5, 11])), "1": LayerMask((2, 2), torch.tensor([1]))}
    after = {"0": LayerMask(SHAPE, torch.tensor([0, 6, 7, 11])), "1": LayerMask((2, 2), torch.tensor([1]))}
    assert diff_masks(before, after) == {"0": (2, 1, 2), "1": (0, 0, 1)}


def test_masks_of_different_models_have_no_difference() -> None:
    one = {"0": LayerMask(SHAPE, FLAT)}
    with pytest.raises(InvalidMask, match=r"layers \['1'\] are in one only"):
        diff_masks(one, {**one, "1": LayerMask(SHAPE, FLAT)})
    with pytest.raises(InvalidMask, match=r"shapes \(3, 4\) and \(4, 3\) differ"):
        diff_masks(one, {"0": LayerMask((4, 3), FLAT)})


def test_a_small_layer_is_drawn_site_by_site() -> None:
    picture = mask_picture(SHAPE, FLAT, max_side=4)
    assert np.asarray(picture).tolist() == [[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]]


def test_a_large_layer_is_pooled_and_its_mean_is_half_grey() -> None:
    side = 1_000_000
    spread = torch.randint(side * side, (1_000_000,), generator=torch.Generator().manual_seed(0)).unique()
    grey = np.asarray(mask_picture((side, side), spread))
    assert grey.shape == (256, 256)
    assert abs(float(grey.mean()) - 127.5) < 15
    corner = torch.arange(1000)  # the first row only
    assert np.asarray(mask_picture((side, side), corner)).nonzero()[0].tolist() == [0]


def test_equal_masks_give_equal_pictures_and_a_full_one_is_white() -> None:
    assert picture_png((300, 500), torch.arange(0, 150_000, 7)) == picture_png((300, 500), torch.arange(0, 150_000, 7))
    assert np.asarray(mask_picture((8, 4, 3, 3), torch.arange(288))).min() == 255
    assert np.asarray(mask_picture(SHAPE, torch.zeros(0, dtype=torch.int64))).max() == 0


def test_a_pictures_name_carries_layer_and_step() -> None:
    assert parse_picture_name(picture_name("features-1.conv", 40)) == ("features-1.conv", 40)
    for other in ("model.safetensors", "mask-steps/0.png", "mask-steps/0-x.png", "other/0-1.png", "mask-steps/-1.png"):
        assert parse_picture_name(other) is None


def test_packing_in_parts_gives_the_same_bytes(monkeypatch):
    from sparsefleet.trial import masks as module

    flat = torch.sort(torch.randperm(10**6, generator=torch.Generator().manual_seed(0))[:1000]).values
    meta = {"method": "set", "seed": 0, "step": 1}
    whole = pack_masks({"a": ((1000, 1000), flat)}, meta)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert pack_masks(iter([("a", ((1000, 1000), flat))]), meta) == whole
