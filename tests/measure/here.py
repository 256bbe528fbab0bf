"""All passes of a job in this process, on saved networks that nobody trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsefleet.measure import child
from sparsefleet.measure.config import groups
from sparsefleet.measure.fingerprint import fingerprint
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, Memo, PassResult, run_passes
from sparsefleet.measure.peaks import ROW_BYTES
from sparsefleet.measure.rates import Level
from sparsefleet.trial.record import Timing
from sparsefleet.trial.spec import TrialSpec

from .test_peaks import HAND
from .trained import row_of, save


def request_for(spec: TrialSpec, folder: Path, op: str = "forward", **options: object) -> MeasureRequest:
    network, model, masks = save(spec, folder / "trial")
    row = row_of(spec)
    assert row.record is not None
    row.record["counts"]["total_params_model"] = network.n_params_dense
    (job,) = groups([row], [8], [op], baselines=("dense_eager",), also_masked=True)  # type: ignore[list-item]
    values = {"job": job, "model": model, "masks": masks, "budget_s": 0.2, "warmup_cap_s": 0.2}
    return MeasureRequest.model_validate(values | options)


def limits() -> dict[str, Any]:
    """Limits of this machine that nothing can beat: the real ones take seconds to measure."""
    level = Level("dram", None, None, read=1e18, stream=1e18, gather=dict.fromkeys(ROW_BYTES, 1e18))
    return replace(HAND, machine=fingerprint()["id"], levels=(level,), flops={"fp32": 1e18}, launch_s=1e-12).to_json()


def measured(request: MeasureRequest, run_one: Callable[[MeasureRequest], PassResult] = child.run) -> MeasureResult:
    """All passes in this process, but for the machine's limits."""

    def one(asked: MeasureRequest) -> PassResult:
        return PassResult(state="SUCCEEDED", facts=limits()) if asked.part.kind == "peaks" else run_one(asked)

    result = run_passes(request, one, Memo())
    assert result is not None
    return result


def timing_of(request: MeasureRequest) -> Timing:
    result = measured(request)
    assert result.state == "SUCCEEDED", result.reason
    (timing,) = result.timings
    return timing
