"""One part of a suite in this process: ``python -m benchmarks.part MODULE:FUNCTION ID TITLE ANSWER.json [--quick]``; see ``harness.run_part``."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.figures import Figure, NotRun, Run
from sparsefleet.fleet.processes import die_with_parent


def main(arguments: list[str]) -> int:
    """0 if there is an answer; what the benchmark raises goes to stderr, and there is none."""
    if sys.platform == "linux":
        die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and what it starts would too
    function, name, title, answer = arguments[:4]
    run = Run(name, quick="--quick" in arguments[4:])
    try:
        module, _, called = function.partition(":")
        figures: list[Figure] = getattr(import_module(module), called)(run)
    except NotRun as reason:
        figures = [Figure(title, "", note=str(reason))]
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("sparsefleet", "sparsefleet_plugins"):
            raise  # the product is broken, which is another thing than a library that is not there
        figures = [Figure(title, "", note=f"{error.name} is not here")]
    body = {"figures": [asdict(figure) for figure in figures], "raw": run.raw}
    Path(answer).write_text(json.dumps(body, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
