"""One job in a process of its own: ``python -m sparsefleet.measure.child REQUEST.json``, or ``run`` in a forked child.

Writes ``result.json`` and ``samples.json`` into the request's work folder; needs neither ray nor mlflow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sparsefleet.errors import SparsefleetError

RESULT = "result.json"


def run(request: dict[str, Any]) -> dict[str, Any]:
    """The result of one request, both as JSON values. What the networks raise becomes the result's state."""
    import torch

    from sparsefleet.measure.run import MeasureRequest, MeasureResult, check_files, measure

    asked = MeasureRequest.model_validate(request)
    asked.workdir.mkdir(parents=True, exist_ok=True)
    try:
        check_files(asked)
        result = measure(asked)
    except (MemoryError, torch.OutOfMemoryError) as error:
        result = MeasureResult(config_key=asked.job.config_key, keys=asked.job.keys, state="OOM", reason=str(error) or "out of memory")
    except SparsefleetError as error:
        result = MeasureResult(config_key=asked.job.config_key, keys=asked.job.keys, state="INVALID", reason=str(error))
    except Exception as error:  # noqa: BLE001 whatever a plugin raises is this job's recorded end
        state = "OOM" if "can't allocate memory" in str(error) else "PLUGIN_ERROR"
        reason = f"{type(error).__name__}: {error}"
        result = MeasureResult(config_key=asked.job.config_key, keys=asked.job.keys, state=state, reason=reason)
    values: dict[str, Any] = result.model_dump(mode="json")
    (asked.workdir / RESULT).write_text(json.dumps(values, allow_nan=False))
    return values


def main(arguments: list[str]) -> int:
    """Runs the request file named on the command line; 0 if there is a timing, 1 otherwise."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m sparsefleet.measure.child REQUEST.json\n")
        return 2
    result = run(json.loads(Path(arguments[0]).read_text()))
    if result["reason"]:
        sys.stderr.write(f"{result['state']}: {result['reason']}\n")
    return 0 if result["state"] == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
