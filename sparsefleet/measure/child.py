"""One pass in a process of its own: ``python -m sparsefleet.measure.child REQUEST.json RESULT.json``, or ``run`` in a forked child.

Needs neither ray nor mlflow.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from sparsefleet.errors import BackendUnreachable, SparsefleetError
from sparsefleet.measure.passes import MeasureRequest, PassResult, write
from sparsefleet.space import means_no_space


def run(request: MeasureRequest) -> PassResult:
    """The result of one pass. What the networks raise becomes its state; a full disk is raised."""
    import torch

    from sparsefleet.measure.audit import Refused
    from sparsefleet.measure.run import run_pass

    started = time.monotonic()
    try:
        result = run_pass(request)
    except (MemoryError, torch.OutOfMemoryError) as error:
        result = PassResult(state="OOM", reason=str(error) or "out of memory")
    except Refused as error:
        result = PassResult(state="INCORRECT", reason=str(error))
    except SparsefleetError as error:
        if means_no_space(error):  # nobody's fault: whoever started this process waits for room
            raise
        result = PassResult(state="INFRA_FAILED" if isinstance(error, BackendUnreachable) else "INVALID", reason=str(error))
    except Exception as error:  # whatever a plugin raises is this job's recorded end
        if means_no_space(error):
            raise
        state = "OOM" if "can't allocate memory" in str(error) else "PLUGIN_ERROR"
        result = PassResult(state=state, reason=f"{type(error).__name__}: {error}")
    return result.model_copy(update={"took_s": time.monotonic() - started})


def main(arguments: list[str]) -> int:
    """Runs the request file named on the command line and writes the result; 0 if it succeeded, 1 otherwise."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m sparsefleet.measure.child REQUEST.json RESULT.json\n")
        return 2
    result = run(MeasureRequest.model_validate(json.loads(Path(arguments[0]).read_text())))
    write(Path(arguments[1]), result)
    if result.reason:
        sys.stderr.write(f"{result.state}: {result.reason}\n")
    return 0 if result.state == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
