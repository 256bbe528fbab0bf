"""MT-05: every liar is caught, and the reason names its lie; the honest layer beside them is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsefleet.measure import child
from sparsefleet.measure.config import MeasureJob
from sparsefleet.measure.passes import MeasureRequest, PassResult
from sparsefleet.registry import catalog
from sparsefleet.trial.spec import Method, PluginRef

from .trained import save, spec_of

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning", "ignore:Sparse invariant checks:UserWarning")


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def _liars(plugin_distribution) -> None:
    plugin_distribution("liars", {"liars": (Path(__file__).parent / "liars.py").read_text()})
    broken = [entry for entry in catalog().entries if entry.distribution == "liars" and entry.state != "ok"]
    assert not broken, broken


def timed(layer: str, op: str, folder: Path) -> PassResult:
    spec = spec_of(layer, model=PluginRef(name="mlp", params={"hidden": [192, 192]}))
    network, model, masks = save(spec, folder / "trial")
    job = MeasureJob(
        config_key=layer,
        keys=("k",),
        representative="k",
        spec=spec,
        twin=spec.model_copy(update={"layer": PluginRef(name="dense"), "method": Method(), "density": 1.0}),
        op=op,  # type: ignore[arg-type]
        batch_size=16,
        baselines=("dense_eager",),
        device="cpu",
        threads=1,
        execution=next(iter(network.sparse.values())).execution,
        versus_dense=layer != "liar-spilling",
    )
    return child.run(MeasureRequest(job=job, model=model, masks=masks, budget_s=0.5, warmup_cap_s=0.5))


@pytest.mark.parametrize(
    ("liar", "op", "named"),
    [
        ("cached", "forward", "relative error"),
        ("skipping", "forward", "under the clock"),
        ("skipping", "step", "under the clock"),
        ("threads", "forward", "changed threads from 1 to"),
        ("threads", "step", "changed threads from 1 to"),
        ("precision", "step", "changed matmul_precision from highest to medium"),
        ("disguised", "forward", "is declared sparse_csr and computes with a dense 192 x 64 matrix"),
        ("disguised", "step", "is declared sparse_csr and computes with a dense 192 x 64 matrix"),
        ("spilling", "step", "weights that are not zero where it has no connection"),
        ("turning", "forward", "under the clock"),
        ("turning", "step", "under the clock"),
    ],
)
def test_a_liar_is_caught(liar: str, op: str, named: str, tmp_path: Path) -> None:
    result = timed(f"liar-{liar}", op, tmp_path)
    assert result.state == "INCORRECT", result.reason
    assert named in str(result.reason)
    assert result.samples is None


@pytest.mark.parametrize("op", ["forward", "step"])
def test_the_honest_layer_is_not(op: str, tmp_path: Path) -> None:
    result = timed("liar-none", op, tmp_path)
    assert result.state == "SUCCEEDED", result.reason
    assert result.facts["correctness"]["audits"] == 3


def test_a_network_without_a_path_from_input_to_output_is_no_liar(tmp_path: Path) -> None:
    """Its output is its last bias whatever comes in: the same for every input, and rightly so."""
    spec = spec_of("csr", density=0.001, model=PluginRef(name="mlp", params={"hidden": [64, 64]}))
    network, model, masks = save(spec, tmp_path / "trial")
    with torch.no_grad():
        outputs = network.module(torch.randn(2, 64))
    assert torch.equal(outputs[0], outputs[1])
    job = MeasureJob(
        config_key="dead",
        keys=("k",),
        representative="k",
        spec=spec,
        twin=spec.model_copy(update={"layer": PluginRef(name="dense"), "method": Method(), "density": 1.0}),
        op="forward",
        batch_size=16,
        baselines=("dense_eager",),
        device="cpu",
        threads=1,
        execution="sparse_csr",
    )
    result = child.run(MeasureRequest(job=job, model=model, masks=masks, budget_s=0.5, warmup_cap_s=0.5))
    assert result.state == "SUCCEEDED", result.reason
