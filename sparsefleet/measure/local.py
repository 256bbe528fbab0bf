"""Measuring by hand: every pass in a fresh process of this machine, under the device's lease. Needs neither ray nor mlflow."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from sparsefleet.measure.lease import LEASE_WAIT_S, device_lease
from sparsefleet.measure.passes import MeasureRequest, MeasureResult, Memo, PassResult, run_passes, write
from sparsefleet.spawn import module_command

_TAIL = 400


def measure_here(request: MeasureRequest, tell: Callable[[str], None] = lambda _: None) -> MeasureResult:
    """The result of one job.

    Args:
        tell: hears a line before each pass, and while someone else measures.

    Raises:
        BackendUnreachable: someone else measured on the device for minutes.
    """
    job = request.job
    with tempfile.TemporaryDirectory(prefix="sparsefleet-measure-") as folder, device_lease(job.device, LEASE_WAIT_S, tell):

        def run(one: MeasureRequest) -> PassResult:
            tell(_title(one))
            return _fresh(one, Path(folder))

        result = run_passes(request, run, Memo())
    assert result is not None  # nobody can ask this runner to stop
    return result


def _title(request: MeasureRequest) -> str:
    part, job = request.part, request.job
    what = {
        "peaks": "this machine's limits",
        "time": f"{job.op}, batch {job.batch_size}, process {part.process + 1}",
        "memory": f"memory of the {part.side} side",
    }[part.kind]
    return f"measuring {what}"


def _fresh(request: MeasureRequest, folder: Path) -> PassResult:
    asked, answer = folder / "request.json", folder / "result.json"
    write(asked, request)
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        module_command("sparsefleet.measure.child", str(asked), str(answer)),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if not answer.exists():
        return PassResult(state="CRASHED", reason=f"the measuring process ended with {done.returncode}: {done.stderr[-_TAIL:].strip()}")
    return PassResult.model_validate(json.loads(answer.read_text()))
