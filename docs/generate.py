"""Writes the pages of ``docs/`` that follow from the code: ``python docs/generate.py``; with ``--check`` it only says which are stale."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # this checkout's code, whatever is installed

import conformance_page  # noqa: E402
import connectivity_pictures  # noqa: E402
import plugin_pages  # noqa: E402
import public_api  # noqa: E402

import sparsefleet  # noqa: E402
from sparsefleet import __version__, connections, errors, hookspecs, method, plugin, plugin_base, rng  # noqa: E402
from sparsefleet.cli.app import cli  # noqa: E402
from sparsefleet.cli.settings import SETTINGS  # noqa: E402
from sparsefleet.nn import coo, linear, module as module_base  # noqa: E402
from sparsefleet.track import page as mlflow_page  # noqa: E402
from sparsefleet.trial.record import Record  # noqa: E402
from sparsefleet.trial.spec import TrialSpec  # noqa: E402

_NOTE = "Generated from {} by `python docs/generate.py`; do not edit.\n"
_QUIET: tuple[Any, ...] = (False, "", None, [], {})


def hooks() -> str:
    """Every hook with its exact signature, its arguments and an example."""
    lines = ["# Hooks\n", _NOTE.format("`sparsefleet/hookspecs.py` and `docs/hook_examples.py`")]
    lines.append(
        "A plugin module implements any of these with `@sparsefleet.hookimpl` and is named by an entry point of the group `sparsefleet`.\n"
        "An implementation may leave out arguments that it does not use. The first seven *register* classes; the others *observe* a trial,\n"
        "in the trial's own process, or answer `doctor`. Observing hooks are called one implementation at a time: one that raises is recorded\n"
        "as a warning of the trial and stops neither the trial nor the others. [writing-plugins.md](writing-plugins.md) tells how a plugin is\n"
        "made, [compatibility.md](compatibility.md) how a hook would go. The examples are one module, which a test runs; it begins with\n"
    )
    imports, examples = _hook_examples()
    lines.append(f"```python\n{imports}\n```\n")
    for node in _functions(_tree(hookspecs)):
        family = hookspecs.REGISTRATION_HOOKS.get(node.name)
        text, _, since = _doc(node).rpartition("Added in ")
        text = _prose(text.strip())
        told = f"{text} Registers plugins of the family `{family}`." if family else text
        lines.append(f"## {node.name}\n\n```python\n{_signature(node)}\n```\n\n{told}\n\n*Added in {since}*\n")
        lines.append(f"```python\n{examples[node.name]}\n```\n")
    return "\n".join(lines)


def _hook_examples() -> tuple[str, dict[str, str]]:
    """The imports of ``docs/hook_examples.py``, and the source that ends with each hook's implementation, by its name."""
    source = (ROOT / "docs" / "hook_examples.py").read_text(encoding="utf-8")
    lines, tree = source.split("\n"), ast.parse(source)
    imported = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    begin, found = imported[-1].end_lineno or 0, {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            end = node.end_lineno or 0
            found[node.name] = "\n".join(lines[begin:end]).strip()
            begin = end
    return "\n".join(lines[imported[0].lineno - 1 : imported[-1].end_lineno]), found


def plugin_api() -> str:
    """What plugin classes declare and override, and what they are given."""
    lines = [
        "# What a plugin declares, overrides and is given\n",
        _NOTE.format("`sparsefleet/plugin.py`, `method.py`, `connections.py`, `rng.py` and `nn/`"),
    ]
    lines.append(
        'A plugin is a frozen pydantic model: class facts are plain assignments in the subclass (`name = "set"`), hyper-parameters are\n'
        "annotated fields with bounds and a description. Everything here is importable from `sparsefleet`, the modules at the end from `sparsefleet.nn`.\n"
    )
    for module in (plugin_base, method, plugin, connections, rng):
        lines += [_class_page(node) for node in _classes(module)]
    lines.append("## Functions\n\nFrom `sparsefleet`; each says more in its docstring.\n")
    lines.append("| function | what it gives |\n|---|---|\n" + "".join(_row(row) for row in _public_functions()))
    lines.append("## What a module of a layer offers\n\n`Layer.build` returns one; these are the methods that an author meets or writes.\n")
    for module, methods in _MODULE_METHODS.items():
        lines += [_class_page(node, methods) for node in _classes(module) if node.name in ("CooLinear", "SparseLinear", "SparseModule")]
    return "\n".join(lines)


_MODULE_METHODS: dict[Any, tuple[str, ...]] = {
    coo: ("product",),
    linear: ("from_connections", "multiply"),
    module_base: (
        "matrix_shape",
        "weight_parameter",
        "nnz",
        "flat_sites",
        "sites",
        "values",
        "write_values",
        "grad_values",
        "set_topology",
        "connections",
    ),
}


def _classes(module: Any) -> list[ast.ClassDef]:
    return [node for node in _tree(module).body if isinstance(node, ast.ClassDef)]


def _public_functions() -> Iterator[tuple[str, str]]:
    """Signature and first line of the docstring of every function in ``sparsefleet.__all__``."""
    for name in sparsefleet.__all__:
        value = getattr(sparsefleet, name)
        if inspect.isfunction(value):
            node = next(node for node in _functions(_tree(inspect.getmodule(value))) if node.name == name)
            yield f"`{_signature(node).removeprefix('def ')}`", _doc(node).partition("\n")[0]


def _class_page(node: ast.ClassDef, only: Sequence[str] = ()) -> str:
    bases = [ast.unparse(base) for base in node.bases if ast.unparse(base) not in ("BaseModel", "ABC", "NamedTuple")]
    title = f"## {node.name}" + (f" ({', '.join(bases)})" if bases else "")
    parts = [f"{title}\n\n{_prose(_doc(node))}\n"]
    rows = list(_members(node))
    if rows:
        parts.append("| name | type | default | meaning |\n|---|---|---|---|\n" + "".join(_row(row) for row in rows))
    for function in _functions(node):
        if function.name in only or not (only or function.name.startswith("_")):
            parts.append(f"```python\n{_signature(function)}\n```\n\n{_prose(_doc(function)) or 'See the base class.'}\n")
    return "\n".join(parts)


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """Class facts and fields: name, type, default, meaning."""
    for item, after in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
        if not isinstance(item, ast.AnnAssign) or ast.unparse(item.target).startswith(("_", "model_config", "family")):
            continue
        kind = ast.unparse(item.annotation)
        meaning = _text_of(after)
        default = ast.unparse(item.value) if item.value else ""
        if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) == "Field":
            default = ast.unparse(item.value.args[0]) if item.value.args else "required"
            named = {k.arg: ast.literal_eval(k.value) for k in item.value.keywords}
            bounds = [f"{sign} {named[word]}" for word, sign in _SIGNS if word in named]
            meaning = "; ".join([named.get("description", ""), *bounds])
        kind = kind.removeprefix("ClassVar[").removesuffix("]") + " (class fact)" if kind.startswith("ClassVar[") else kind
        yield f"`{ast.unparse(item.target)}`", kind, f"`{default}`" if default else "", meaning


_SIGNS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def command_line() -> str:
    """Every command with its options and examples."""
    lines = ["# The command line\n", _NOTE.format("the click commands in `sparsefleet/cli/`")]
    lines.append(
        'Results go to standard output, everything else to standard error. Every reading command has `--json`: one object with `"schema": 1`.\n\n'
        "With `--address http://HEAD:8265` a command about sweeps runs on that cluster, whose sweeps are meant: see [Running a fleet](fleet.md).\n"
    )
    with click.Context(cli, info_name="sparsefleet") as context:
        lines += list(_commands(cli, context))
    lines.append(
        "## Settings\n\nA flag wins over the environment, the environment over the nearest `sparsefleet.toml` of this folder or above,\nthat over the "
        "user's own file, that over the default. `sparsefleet config show` names the origin of each value.\n"
    )
    rows = [
        (f"`{s.name}`", f"`{s.env}`" + (f", `{s.also}`" if s.also else ""), s.help, f"`{s.default}`" if s.default else "")
        for s in SETTINGS.values()
    ]
    lines.append("| setting | environment | meaning | default |\n|---|---|---|---|\n" + "".join(_row(row) for row in rows))
    lines.append(
        "`SPARSEFLEET_KERNELS=off` (or 0, false, no) turns the CPU kernels off: sparse layers then compute in plain torch, slower, and their trials "
        "have keys of their own. Unset, on, 1, true and yes leave them on.\n"
    )
    tree = "\n".join(inspect.getdoc(errors).split("\n")[2:])  # type: ignore[union-attr]
    lines.append(
        f"## Exit codes\n\n0: it went well. 130: interrupted. Else the number beside the error that ended it:\n\n```text\n{tree}\n```\n"
    )
    return "\n".join(lines)


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    parts = [f"## {context.command_path}\n\n{_click_text(command.help)}\n"]
    pieces = " ".join(piece for piece in command.collect_usage_pieces(context))
    parts.append(f"```text\n{context.command_path} {pieces}\n```\n")
    records = [r for p in command.params if isinstance(p, click.Option) and (r := p.get_help_record(context))]
    if records:
        parts.append("| option | meaning |\n|---|---|\n" + "".join(_row((f"`{option}`", meaning)) for option, meaning in records))
    examples = [line.strip() for line in (command.epilog or "").replace("\b", "").split("\n") if line.strip()]
    if examples:
        parts.append(f"{examples[0]}\n\n```text\n" + "\n".join(examples[1:]) + "\n```\n")
    yield "\n".join(parts)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                with click.Context(child, info_name=name, parent=context) as inner:
                    yield from _commands(child, inner)


def _click_text(text: str | None) -> str:
    return "\n".join(line.strip() for line in inspect.cleandoc(text or "").replace("\b", "").split("\n"))


def schema_of(model: type[BaseModel]) -> Callable[[], str]:
    """A function that makes the JSON schema of a published document."""
    return lambda: json.dumps(model.model_json_schema(by_alias=True), indent=2, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/hooks.md": hooks,
    "docs/plugin-api.md": plugin_api,
    "docs/cli.md": command_line,
    "docs/mlflow.md": mlflow_page.render,
    "docs/schemas/sf-record-1.json": schema_of(Record),
    "docs/schemas/sf-spec-1.json": schema_of(TrialSpec),
    public_api.path_of(__version__).relative_to(ROOT).as_posix(): public_api.render,
}
_OWN_FOLDER = ROOT / "docs" / "plugins"


def pages() -> dict[str, Callable[[], str]]:
    """Makers of every page by path."""
    return {**PAGES, **conformance_page.pages(_row), **plugin_pages.pages(_row)}


def _pixels(path: Path) -> tuple[tuple[int, int], bytes] | None:
    """Size and grey levels of a picture: the same picture may be compressed otherwise by another version of the library."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.size, image.convert("L").tobytes()


def _tree(module: Any) -> ast.Module:
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def _functions(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    return [item for item in node.body if isinstance(item, ast.FunctionDef)]


def _signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    head = "@property\n" if any(ast.unparse(d) == "property" for d in node.decorator_list) else ""
    return f"{head}def {node.name}({ast.unparse(node.args)}){returns}"


def _doc(node: ast.FunctionDef | ast.ClassDef) -> str:
    return ast.get_docstring(node) or ""


def _text_of(node: ast.stmt) -> str:
    """The text under an assignment that documents it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _prose(docstring: str) -> str:
    """A Google docstring as Markdown: sections become lists."""
    lines = []
    for line in docstring.split("\n"):
        if line.rstrip() in ("Args:", "Attributes:", "Raises:", "Returns:"):
            lines.append(f"{line.rstrip()}\n")
        elif line.startswith("    ") and not line.startswith("     "):
            lines.append(f"* {line.strip()}")
        else:
            lines.append(line.strip())
    return "\n".join(lines).replace("``", "`")


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("``", "`").replace("|", "\\|") for cell in cells) + " |\n"


def stale() -> list[str]:
    """Pages that differ from what the code says."""
    texts = [
        name for name, render in pages().items() if not (path := ROOT / name).is_file() or path.read_text(encoding="utf-8") != render()
    ]
    drawn = connectivity_pictures.pictures()
    gone = [path.relative_to(ROOT).as_posix() for path in _OWN_FOLDER.glob("*.md") if path.relative_to(ROOT).as_posix() not in pages()]
    return [*texts, *gone, *(name for name, image in drawn.items() if _pixels(ROOT / name) != (image.size, image.convert("L").tobytes()))]


def main() -> int:
    """1 if a page is stale and ``--check`` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is stale")
    if not parser.parse_args().check:
        made = pages()
        for path in _OWN_FOLDER.glob("*.md"):
            if path.relative_to(ROOT).as_posix() not in made:
                path.unlink()  # of a plugin that is gone
        for name, render in made.items():
            path = ROOT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(), encoding="utf-8")
        for name, image in connectivity_pictures.pictures().items():
            if _pixels(ROOT / name) != (image.size, image.convert("L").tobytes()):
                (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
                image.save(ROOT / name)
        return 0
    found = stale()
    for name in found:
        sys.stderr.write(f"{name} is stale\n  fix: python docs/generate.py\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
