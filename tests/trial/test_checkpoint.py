"""The checkpoint's file: what any reader of safetensors reads, written without a second copy of the tensors."""

import pytest
import torch
from safetensors.torch import load_file

from sparsefleet.testing.allocation import peak_bytes
from sparsefleet.trial.checkpoint import FILE, load_checkpoint, save_checkpoint

TENSORS = {
    "rng": torch.arange(7, dtype=torch.uint8),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "strided": torch.arange(12.0).view(3, 4).t(),
    "bits": torch.tensor([True, False, True]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "sites": torch.tensor([2**40, 3]),
    "small": torch.tensor([1, -2], dtype=torch.int16),
    "same/a": torch.ones(3),
}


def test_everything_comes_back_as_it_was(tmp_path):
    shared = {**TENSORS, "same/b": TENSORS["same/a"]}
    save_checkpoint(tmp_path, shared, {"trial_key": "k", "step": 3})
    found, warning = load_checkpoint(tmp_path, "k")
    assert warning is None
    assert found.facts["step"] == 3
    for name, value in shared.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value)
        assert torch.equal(load_file(tmp_path / FILE)[name], value)
    found.tensors["sites"][0] = 1  # what is restored can be trained on
    again, _ = load_checkpoint(tmp_path, "k")
    assert again.tensors["sites"][0] == 2**40


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_changed_byte_is_noticed(tmp_path, damage):
    save_checkpoint(tmp_path, TENSORS, {"trial_key": "k"})
    blob = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(blob[:-1] + damage)
    found, warning = load_checkpoint(tmp_path, "k")
    assert found is None
    assert "its digest does not match" in warning


def test_no_second_copy_of_the_tensors(tmp_path):
    tensors = {f"t{i}": torch.zeros(1 << 20) for i in range(8)}  # 32 MiB in all
    assert peak_bytes(lambda: save_checkpoint(tmp_path, tensors, {"trial_key": "k"})) < 5 << 20
