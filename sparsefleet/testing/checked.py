"""The process in which ``isolated`` checks one plugin: ``python -m sparsefleet.testing.checked '{"family": …}'``; one line of JSON per event."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from typing import Any

from sparsefleet.fleet.processes import die_with_parent

_MORE_S = 1.0
"""After the time limit: code that does not heed the alarm is asked where it stands, then killed by the caller."""


def main() -> None:
    """Answers on the real standard output; what plugins print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        answers.write(json.dumps(event) + "\n")
        answers.flush()

    request = json.loads(sys.argv[1])
    if sys.platform == "linux":
        die_with_parent(request["parent"])  # it hears of no key: a plugin that hangs would stay when a terminal is closed
    with open(request["trace"], "w", encoding="utf-8") as trace:
        faulthandler.enable(trace)
        _run(request, tell, trace)


def _run(request: dict[str, Any], tell: Any, trace: Any) -> None:
    from pydantic import ValidationError

    from sparsefleet.registry import classes_of, load_module
    from sparsefleet.testing.expect import left_out_text
    from sparsefleet.testing.imports import report_of
    from sparsefleet.testing.isolated import REFUSED, RUNS, STARTING_RULE
    from sparsefleet.testing.kit import asked_if_it_runs, checks_for, rule_of, run_check

    seconds, plugin, problem = 0.0, None, ""
    try:
        seconds = report_of(request["module"]).seconds
        classes = {(cls.family, cls.name): cls for cls in classes_of(load_module(request["module"]))}
        plugin = classes[request["family"], request["name"]](**request["params"])
    except ValidationError as error:
        problem = REFUSED + "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
    except Exception:  # noqa: BLE001  whatever it raises is the finding
        problem = f"raised\n{traceback.format_exc()}"
    if plugin is None:
        tell(event="checks", checks={}, use=[], rule=STARTING_RULE, problem=problem, seconds=seconds)
        tell(event="done")
        return
    checks = {one.__name__: one for one in checks_for(plugin)}
    rules = {name: rule_of(one) for name, one in checks.items()}
    use = [one.__name__ for one in asked_if_it_runs(checks.values())]
    tell(event="checks", checks=rules, use=use, rule=STARTING_RULE, problem="", seconds=seconds)
    left_out = [*request["finished"], *(name for name in checks if request["only"] and name not in request["only"])]
    for name, one in checks.items():
        if name in left_out:
            continue
        tell(event="starts", check=name)
        faulthandler.dump_traceback_later(request["timeout_s"] + _MORE_S, file=trace)
        outcome = run_check(one, plugin, request["timeout_s"])
        faulthandler.cancel_dump_traceback_later()
        problem = outcome.problem
        if name == RUNS and outcome.stopped:
            problem += left_out_text(len(set(use) - set(left_out)))
            left_out += use
        tell(event="ended", check=name, problem=problem, seconds=outcome.seconds)
    tell(event="done")


if __name__ == "__main__":
    main()
