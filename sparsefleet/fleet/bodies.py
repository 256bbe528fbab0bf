"""What a forked child can be asked to do. Imported by the fork server before any fork; imports torch only through the trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsefleet.crash_points import passing
from sparsefleet.errors import BackendUnreachable
from sparsefleet.fleet.leftovers import Held
from sparsefleet.measure.lease import LEASE_WAIT_S, WAITS_FOR, device_lease
from sparsefleet.trial import files
from sparsefleet.trial.request import TrialRequest


def trial(job: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one trial; its record as JSON."""
    import torch

    from sparsefleet.trial.run import run_trial

    request = TrialRequest.model_validate(job["request"])
    torch.set_num_threads(request.threads)
    held = Held()
    passing("child-begin")
    record = run_trial(request, progress).to_json()
    passing("child-end")
    return {**record, "warnings": [*record["warnings"], *held.warnings()]}


def measure(job: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """One pass of a measurement, under the device's lease; its result as JSON."""
    from sparsefleet.measure.child import run
    from sparsefleet.measure.passes import MeasureRequest, PassResult

    folder = Path(job["workdir"])
    masks = folder if (folder / files.MASKS).exists() else None
    request = MeasureRequest.model_validate({**job["measure"], "model": folder / files.MODEL, "masks": masks})
    try:
        with device_lease(request.job.device, LEASE_WAIT_S, lambda why: progress({WAITS_FOR: why})):
            result = run(request)
    except BackendUnreachable as error:  # nothing is wrong with what was to be timed
        result = PassResult(state="INFRA_FAILED", reason=str(error))
    return result.model_dump(mode="json")
