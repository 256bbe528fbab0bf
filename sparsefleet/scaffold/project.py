"""The files of a new plugin project. Each family's template is the smallest plugin of it that is of use."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

import sparsefleet
from sparsefleet.errors import UserError, did_you_mean

TARGET_LINES = {"pruner": 20, "rewirer": 20, "layer": 40, "connectivity": 20, "activation": 25, "model": 25, "dataset": 30}
"""Non-blank lines that the smallest useful plugin of a family may have."""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 30
_MEANT_OTHERWISE = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", "none", "all")
"""Words that a grid reads as something else than a name."""


@dataclass(frozen=True)
class _Example:
    """What the files around a family's module say.

    Attributes:
        summary: what the plugin does, for the project's description.
        other: arguments of the second instance that is tested.
        axes: how the grid uses it.
    """

    summary: str
    other: str
    axes: str
    dataset: str = "digits"
    model: str = "{mlp: {hidden: [64], norm: layer}}"


_SPARSE = "density: 0.1\nlayer: csr\n"
_EXAMPLES = {
    "pruner": _Example(
        "weights count relative to the others of their output unit",
        "power=0.5",
        _SPARSE + "axes:\n  method:\n    - {pruner: magnitude, schedule: cubic}\n    - {pruner: $name, schedule: cubic}\n"
        "    - {pruner: {$name: {power: 0.5}}, schedule: cubic}",
    ),
    "rewirer": _Example(
        "drops what the loss would miss least, grows at random",
        "power=0.5",
        _SPARSE + "axes:\n  method:\n    - {rewirer: {set: {every: 10}}}\n    - {rewirer: {$name: {every: 10}}}\n"
        "    - {rewirer: {$name: {every: 10, power: 0.5}}}",
    ),
    "layer": _Example(
        "a sparse layer that gathers, multiplies and adds up",
        "double=True",
        "density: 0.1\nmethod: {rewirer: {rigl: {every: 10}}}\naxes:\n  layer: [csr, $name, {$name: {double: true}}]",
    ),
    "connectivity": _Example(
        "every output unit reads inputs that lie next to each other",
        "random_start=True",
        _SPARSE + "method: {rewirer: static}\naxes:\n  connectivity: [random, $name, {$name: {random_start: true}}]",
    ),
    "activation": _Example("a power of relu", "power=1.5", "axes:\n  activation: [relu, $name, {$name: {power: 3}}]"),
    "model": _Example(
        "a perceptron whose hidden layers add to what they read",
        "width=32, depth=1",
        _SPARSE + "method: {rewirer: {set: {every: 10}}}\naxes:\n  model.$name.depth: [1, 3]",
        model="{$name: {width: 64}}",
    ),
    "dataset": _Example(
        "whether the product of the first two of ten features is positive",
        "n_train=100",
        _SPARSE + "axes:\n  method:\n    - {rewirer: static}\n    - {rewirer: {rigl: {every: 10}}}",
        dataset="$name",
    ),
}


def distribution_of(name: str) -> str:
    """``sf-name``: the project, its folder and what pip knows."""
    return f"sf-{name}"


def module_of(name: str) -> str:
    """``sf_name``."""
    return distribution_of(name).replace("-", "_")


def class_of(family: str, name: str) -> str:
    """``NameFamily``, or ``Name`` where that ends so: neither a keyword nor a name that the module imports."""
    parts = name.split("-")
    told = (*parts, family) if len(parts) == 1 or parts[-1] != family else parts
    return "".join(part.capitalize() for part in told)


def render(family: str, name: str) -> dict[str, str]:
    """The text of every file of the project, by file name.

    Raises:
        UserError: no such family, or a name that a plugin cannot have.
    """
    if family not in _EXAMPLES:
        raise UserError(f"unknown family {family!r}", fix=did_you_mean(family, _EXAMPLES))
    _check_name(name)
    example, module = _EXAMPLES[family], module_of(name)
    major, minor = sparsefleet.__version__.split(".")[:2]
    facts = {
        "name": name,
        "title": name.replace("-", " ").capitalize(),
        "family": family,
        "kind": "data set" if family == "dataset" else family,
        "module": module,
        "cls": class_of(family, name),
        "distribution": distribution_of(name),
        "requirement": f"sparsefleet>={major}.{minor},<{major}.{int(minor) + 1}",
        "summary": example.summary,
        "other": example.other,
    }
    facts |= {key: Template(getattr(example, key)).substitute(facts) for key in ("dataset", "model", "axes")}
    return {
        "pyproject.toml": _filled("pyproject.toml", facts),
        f"{module}.py": _filled(f"{family}.py", facts),
        f"test_{module}.py": _filled("test.py", facts),
        "README.md": _filled("README.md", facts),
        "grid.yaml": _filled("grid.yaml", facts),
    }


def write(family: str, name: str, into: Path) -> Path:
    """The new folder ``into/sf-name``.

    Raises:
        UserError: no such family, a name that is taken or that a plugin cannot have, a folder that is there already or cannot be made.
    """
    texts = render(family, name)
    _check_free(family, name)
    folder = into / distribution_of(name)
    try:
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{folder} is there already", fix="choose another name, or another place with --into") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written", cause=error.strerror) from error
    return folder


def _filled(template: str, facts: Mapping[str, str]) -> str:
    text = (files("sparsefleet.scaffold") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(facts)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise UserError(
            f"a plugin cannot be called {name!r}",
            fix=f"up to {_LONGEST} lower-case letters, digits and hyphens between them, a letter first, e.g. my-method",
        )
    if name in _MEANT_OTHERWISE:
        raise UserError(f"a plugin cannot be called {name!r}", cause="a grid would read another thing than a name", fix=f"e.g. my-{name}")


def _check_free(family: str, name: str) -> None:
    from sparsefleet.registry import catalog

    for entry in catalog().entries:
        if (entry.family, entry.name) == (family, name):
            raise UserError(
                f"the {family} {name!r} is there already, from {entry.distribution} {entry.version}",
                fix=f"another name, e.g. my-{name}; sparsefleet plugins list --family {family} shows those that are taken",
            )
    if importlib.util.find_spec(module_of(name)) is not None:
        raise UserError(f"the module {module_of(name)!r} is installed already", fix=f"another name, e.g. my-{name}")
