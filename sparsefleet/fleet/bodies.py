"""What a forked child can be asked to do. Imported by the fork server before any fork; imports torch only through the trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsefleet.fleet.lease import device_lease
from sparsefleet.trial import files
from sparsefleet.trial.request import TrialRequest

LEASE_WAIT_S = 600.0


def trial(job: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one trial; its record as JSON."""
    import torch

    from sparsefleet.trial.run import run_trial

    request = TrialRequest.model_validate(job["request"])
    torch.set_num_threads(request.threads)
    return run_trial(request, progress).to_json()


def measure(job: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time one configuration; its result as JSON, ``samples`` being the raw samples as text."""
    from sparsefleet.measure.child import run

    folder = Path(job["workdir"])
    masks = str(folder) if (folder / files.MASKS).exists() else None
    request = {**job["measure"], "model": str(folder / files.MODEL), "masks": masks, "workdir": str(folder / "timing")}
    with device_lease(job["measure"]["job"]["device"], LEASE_WAIT_S):
        result = run(request)
    samples = result.get("samples")
    return {**result, "samples": Path(samples).read_text() if samples else None}
