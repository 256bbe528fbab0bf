"""What a supervisor is sent: one attempt as JSON. Imports neither ray nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsefleet.ledger import TrialRow
from sparsefleet.measure.lease import LEASE_WAIT_S
from sparsefleet.trial import files

TRIAL = "sparsefleet.fleet.bodies:trial"
MEASURE = "sparsefleet.fleet.bodies:measure"
START = "start"
"""In the work folder, the folder with the network of the trial that this one starts from. Not an artifact."""
MEASURE_LIMIT_S = 900.0 + LEASE_WAIT_S
_NO_LIMIT_GRACE_S = 15.0


def trial_job(row: TrialRow, attempt: int, data_root: Path, start: dict[str, Any] | None) -> dict[str, Any]:
    """One attempt of a trial.

    Args:
        start: the record of the trial that this one starts from.
    """
    asked, limits = row.request, row.limits
    device = asked.get("device", "cpu")
    request = {
        "spec": row.spec,
        "trial_key": row.key,
        "attempt": attempt,
        "workdir": ".",
        "data_root": str(asked.get("data_root") or data_root),
        "device": device,
        "threads": asked.get("threads", 1),
        "code": asked.get("code", {}),
        "data": asked.get("data", {}),
    }
    if limits.get("checkpoint_every_s"):
        request["checkpoint_every_s"] = limits["checkpoint_every_s"]
    return {
        "key": row.key,
        "attempt": attempt,
        "body": TRIAL,
        "request": request,
        "timeout_s": limits.get("timeout_s"),
        "memory_mib": limits.get("memory_mib"),
        "limits_address_space": device == "cpu",  # CUDA reserves far more of it than memory
        "fetch": {f"{START}/{name}": sha for name, sha in _network(start).items()} if start else {},
    }


def measure_job(request: dict[str, Any], record: dict[str, Any], forget: Sequence[str] = ()) -> dict[str, Any]:
    """One pass of a measurement, as ``sparsefleet.measure.passes.MeasureRequest`` in JSON.

    Args:
        record: the representative's.
        forget: earlier jobs whose folders are not needed again.
    """
    return {
        "key": f"measure-{request['job']['config_key']}",
        "attempt": 1,
        "body": MEASURE,
        "measure": request,
        "timeout_s": MEASURE_LIMIT_S,
        "memory_mib": None,
        "fetch": _network(record),
        "forget": list(forget),
    }


def _network(record: dict[str, Any]) -> dict[str, str]:
    """sha256 by name of the artifacts that a trained network is loaded from."""
    names = (files.MODEL, files.MASKS, files.MANIFEST, files.SPEC)
    artifact(record, files.MODEL)
    return {a["name"]: a["sha256"] for a in record["artifacts"] if a["name"] in names}


def artifact(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The named file of a committed record."""
    found: Sequence[dict[str, Any]] = [a for a in record["artifacts"] if a["name"] == name]
    if not found:
        raise LookupError(f"the record of {record['spec_id']} has no {name}")
    return found[0]


def overdue_s(job: dict[str, Any]) -> float | None:
    """When the driver stops believing that the job's own node enforces its limit; None without one."""
    return job["timeout_s"] + _NO_LIMIT_GRACE_S if job.get("timeout_s") else None
