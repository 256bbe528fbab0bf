from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.trust.memory import ALLOWED_BYTES, MIB, measured
from sparsefleet.measure import machine, memory as module
from sparsefleet.measure.memory import conversion, peak_of
from sparsefleet.registry import Registry
from sparsefleet.trial.build import build_network
from sparsefleet.trial.spec import PluginRef
from tests.measure.trained import spec_of

needs_clear_refs = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel has no clear_refs")


@needs_clear_refs
def test_a_known_transient_of_a_fresh_process() -> None:
    found, kind, why_not = measured(64 * MIB)
    assert (kind, why_not) == ("VmHWM", "")
    assert abs(found - 64 * MIB) <= ALLOWED_BYTES


@needs_clear_refs
def test_what_went_before_and_what_comes_after_does_not_count() -> None:
    torch.ones(256 * MIB, dtype=torch.uint8)
    kept, peak = peak_of(lambda: torch.ones(32 * MIB, dtype=torch.uint8), "cpu")
    assert kept.numel() == 32 * MIB
    assert peak.bytes is not None and abs(peak.bytes - 32 * MIB) <= ALLOWED_BYTES
    nothing, small = peak_of(lambda: None, "cpu")
    assert nothing is None and small.bytes is not None and small.bytes <= ALLOWED_BYTES


def test_no_figure_where_the_kernel_does_not_let_us_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SELF", tmp_path / "none")
    result, peak = peak_of(lambda: 7, "cpu")
    assert (result, peak.bytes) == (7, None)
    assert "clear_refs cannot be written: No such file or directory" in peak.why_not
    monkeypatch.setattr(module, "_SELF", tmp_path)
    (tmp_path / "clear_refs").write_text("")
    assert "shows no VmRSS" in peak_of(lambda: 7, "cpu")[1].why_not


@needs_clear_refs
def test_the_conversion_of_masked_weights_costs_what_it_stores_and_its_temporaries() -> None:
    registry, spec = Registry(), spec_of("csr", 0.5, model=PluginRef(name="mlp", params={"hidden": [1024, 1024]}))
    network = build_network(spec, registry=registry)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    seconds, peak = conversion(network, spec, registry, "cpu")
    stored = sum(module.nnz for module in network.sparse.values()) * (4 + 4 + 4 + 8)
    assert peak.bytes is not None and stored < peak.bytes < 6 * stored
    assert 0 < seconds < 10
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())


@pytest.mark.parametrize("free", [2**40, 0])
def test_dense_weights_or_connections_alone_give_the_same_layer(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "meminfo", lambda: {"MemAvailable": free})
    network = build_network(spec_of("csr", 0.1))
    sources = module._sources(network, "cpu")
    assert [source.is_dense for source in sources] == [bool(free)] * 2
    layer = Registry().build("layer", spec_of("csr", 0.1).layer)
    for source, old in zip(sources, network.sparse.values(), strict=True):
        new = source.build(layer)
        assert torch.equal(new.flat_sites(), old.flat_sites())
        assert torch.equal(new.values(), old.values())
        assert torch.equal(new.bias, old.bias)


def test_a_storage_without_connections_has_nothing_to_convert() -> None:
    registry = Registry()
    for layer, density in (("masked", 0.1), ("dense", 1.0)):
        spec = spec_of(layer, density)
        seconds, peak = conversion(build_network(spec, registry=registry), spec, registry, "cpu")
        assert (seconds, peak.bytes, peak.why_not) == (0.0, None, f"{layer} stores no connections")


@pytest.mark.gpu
def test_a_known_transient_of_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found, kind, _ = measured(64 * MIB, "cuda")
    assert kind == "cuda" and abs(found - 64 * MIB) <= ALLOWED_BYTES
