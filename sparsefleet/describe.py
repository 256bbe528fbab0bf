"""Describes plugin modules in a process of its own: ``python -m sparsefleet.describe '[[point, module, distribution], …]'``.

One line of JSON per entry point, written as soon as it is known, so that the caller can tell which module ended this process.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any

from sparsefleet.deprecated import implemented_by
from sparsefleet.errors import SparsefleetError
from sparsefleet.hookspecs import REGISTRATION_HOOKS
from sparsefleet.registry import classes_of, facts_of, load_module


def describe(module_name: str) -> list[dict[str, Any]]:
    """The catalogue items of one module: its plugin classes, and one item for its observing hooks."""
    module = load_module(module_name)
    items: list[dict[str, Any]] = []
    for cls in classes_of(module):
        summary = (inspect.getdoc(cls) or inspect.getdoc(module) or "").split("\n")[0]
        items.append(
            {
                "family": cls.family,
                "name": cls.name,
                "class_name": cls.__name__,
                "schema": cls.model_json_schema(),
                "facts": facts_of(cls),
                "summary": summary,
            }
        )
    observing = sorted(
        name for name, value in vars(module).items() if hasattr(value, "sparsefleet_impl") and name not in REGISTRATION_HOOKS
    )
    if observing:
        summary = (inspect.getdoc(module) or "").split("\n")[0]
        items.append({"family": "hooks", "name": module_name, "facts": {"hooks": observing}, "summary": summary})
    for item in items:
        item["facts"]["deprecated"] = [*item["facts"].get("deprecated", []), *implemented_by(module)]
    if not items:
        raise SparsefleetError("it implements no hook of sparsefleet")
    return items


def main() -> None:
    """Answers on the real standard output; what plugins print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for point, module_name, distribution in json.loads(sys.argv[1]):
        answer: dict[str, Any] = {"point": point, "distribution": distribution, "error": "", "plugins": []}
        try:
            answer["plugins"] = describe(module_name)
        except SparsefleetError as error:
            answer["error"] = f"{error.what}{f' ({error.cause})' if error.cause else ''}{f'; {error.fix}' if error.fix else ''}"
        except Exception as error:  # noqa: BLE001  whatever a plugin class raises is its reason
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write("\x1e" + json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
