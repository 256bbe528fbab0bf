"""The page of names, ``docs/mlflow.md``, from the source of ``names``."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from sparsefleet.track import names

_HEAD = """# What lies in MLflow

Generated from `sparsefleet/track/names.py` by `python -m sparsefleet.track.page docs/mlflow.md`; do not edit.

An experiment is a grid. A parent run is a sweep; its note is the comparison table. A child run is a committed trial, once, however often
the uploader or the server was interrupted; a trial that two sweeps share is a child of the sweep that ran it, and both list it in
`sweep.json`. A trial that was run again after a failure replaces its earlier run.

The ledger is the truth. What is here was written from it by one uploader, and `sparsefleet compare SWEEP --from mlflow` gives the same
table. Nothing is pickled: weights and masks are safetensors, the rest is JSON, Markdown and PNG. `{…}` stands for a value.

Without `MLFLOW_TRACKING_URI` everything lies in `mlflow.db` and `mlartifacts` of the home (`SPARSEFLEET_HOME`).
"""


def render() -> str:
    """The page in Markdown."""
    tree = ast.parse(Path(names.__file__).read_text(encoding="utf-8"))
    lines = [_HEAD]
    headings = {
        line: text.removeprefix("# ")
        for line, text in enumerate(Path(names.__file__).read_text(encoding="utf-8").splitlines(), start=1)
        if text.startswith("# ")
    }
    last = 0
    for node, doc in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(node, ast.Assign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)):
            continue
        for line in sorted(line for line in headings if last < line < node.lineno):
            lines.append(f"\n## {_title(headings[line])}\n\n| name | what it holds |\n|---|---|\n")
        last = node.lineno
        target = node.targets[0]
        value = getattr(names, target.id) if isinstance(target, ast.Name) else ""
        text = " ".join(str(doc.value.value).split()).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{value}` | {text} |\n")
    return "".join(lines)


def _title(comment: str) -> str:
    text = comment.split(":")[0].split(";")[0]
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
