"""The page of the conformance kit: every check and its rule, from the checks themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sparsefleet.testing import common
from sparsefleet.testing.families import CHECKS_BY_KIND, Check
from sparsefleet.testing.kit import rule_of

_HEAD = """# What a plugin must keep to

Generated from the checks in `sparsefleet/testing/` by `python docs/generate.py`; do not edit.

A plugin conforms if it passes every check of its family. There are three ways to ask:

```text
sparsefleet plugins check my-method          an installed plugin; or ./my_pruner.py, or the folder of a project
```

```python
from sparsefleet.testing import check, conformance

assert check(MyPruner()) == []  # a list of texts, one for each check that failed


@conformance(MyPruner(), MyPruner(power=2))  # a case of pytest for each plugin and check
def test_my_pruner(check):
    check()
```

A failed check says what was expected, what came, and how to mend it; one in which the plugin raises begins with the plugin's own line. The first,
`runs`, uses it once: where that fails, the checks that use it are not run. A check whose rule cannot hold for your method is excused with the
reason, `@conformance(MyPruner(), except_for={"check_name": "why"})`: pytest expects it to fail, and says so when it no longer does.
`run_checks(plugin)` yields every check with its rule, its problem and its seconds. Checks marked † take more than a few seconds on some plugins.

## While every check runs

* A plugin that ends the process (`sys.exit`, `os._exit`, `os.abort`, a signal to itself, `KeyboardInterrupt`) fails the check with the line that did
  it, and the other checks go on.
* A check may take 60 s, or what `--timeout` or `SPARSEFLEET_CHECK_TIMEOUT` says; then it fails with the line where the plugin stood. `plugins check`
  runs in a process of its own, so that a loop in C, a crash or an exit from C is named in the same way.
* What all code shares must be as it was: torch's default dtype and device, grad and inference mode, deterministic algorithms, threads, matmul
  precision and cuDNN flags, the working folder, `os.environ`, `sys.path`, `sys.stdout` and `sys.stderr`, warnings filters, recursion limit, signal
  handlers, the root logger, numpy's reaction to errors, and the functions of torch, numpy, `math`, `random`, `os` and of the classes that plugins are
  given. What was changed is named and put back.
"""


def pages(row: Callable[[Iterable[str]], str]) -> dict[str, Callable[[], str]]:
    """Page makers by path.

    Args:
        row: makes a line of a Markdown table.
    """
    return {"docs/conformance.md": lambda: _page(row)}


def _page(row: Callable[[Iterable[str]], str]) -> str:
    tables = {"every plugin": common.CHECKS, **CHECKS_BY_KIND}
    return _HEAD + "".join(
        _table(f"A {title}" if title in CHECKS_BY_KIND else title.capitalize(), checks, row) for title, checks in tables.items()
    )


def _table(title: str, checks: Iterable[Check], row: Callable[[Iterable[str]], str]) -> str:
    title = title.replace("A activation", "An activation")
    lines = [row((f"`{one.__name__}`" + (" †" if getattr(one, "heavy", False) else ""), rule_of(one))) for one in checks]
    return f"\n## {title}\n\n| check | rule |\n|---|---|\n" + "".join(lines)
