"""One page per first-party plugin, and the table of methods: from the classes, the grid checks, the tests and the kept benchmark results."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsefleet import plugin
from sparsefleet.grid.expand import Skip, walk
from sparsefleet.grid.load import load_text
from sparsefleet.registry import Entry, catalog

ROOT = Path(__file__).resolve().parent.parent
NOTE = "Generated from {} by `python docs/generate.py`; do not edit.\n"
METHODS = ("pruner", "rewirer")
_PARTS = ("choosing", "surgery", "at every step")
"""Of an update's cost, by how the benchmark's figures begin."""
_BASE = """\
name: example
dataset: {dataset}
model: {model}
optimizer: {{sgd: {{lr: 0.1{momentum}}}}}
train: {{epochs: 5}}
"""
_DATA_OF_MODEL = {
    "lenet-5": "mnist",
    "small-cnn": "mnist",
    "wide-resnet": "cifar10",
    "torchvision": "cifar10",
    "sentiment-lstm": "rt-polarity",
}
_MODEL_OF_DATA = {"rt-polarity": "sentiment-lstm", "cifar10": "small-cnn", "cifar100": "small-cnn", "image-folder": "small-cnn"}
_LIMITS = {
    "needs_dense": "It needs a value at every site, so it runs on layers with dense storage only (`masked`, `quantised`).",
    "needs_plain_sgd": "It is defined for SGD without momentum; the plan skips it with any other optimizer.",
    "needs_absent_grad": "An update reads the gradient at absent sites: the layer computes it in blocks, which costs time and no dense memory.",
    "varies_nnz": "An update may leave another number of connections than was asked; the record tells what was realised.",
    "sequential": "Layers are scored one after another, so `distribution: global` does not go with it.",
    "redistributes": "It moves connections between layers, so a constant fan-in cannot hold them.",
    "masked_dense": "It is never faster than dense, and no speed-up is shown for it.",
}
_PRUNER_NEEDS_DENSE = "It needs a value at every site, so it trains on dense storage; the network moves to its layer at `convert_at`."


def entries() -> list[Entry]:
    """Every first-party plugin.

    Raises:
        SystemExit: one does not load.
    """
    found = [e for e in catalog().entries if e.distribution == "sparsefleet" and e.family != "hooks"]
    broken = [f"{e.module}: {e.reason}" for e in found if e.state != "ok"]
    if broken:
        raise SystemExit("plugins that do not load: " + "; ".join(broken))
    return found


def pages(row: Callable[[Iterable[str]], str]) -> dict[str, Callable[[], str]]:
    """Page makers by path.

    Args:
        row: makes a line of a Markdown table.
    """
    made: dict[str, Callable[[], str]] = {"docs/plugins.md": lambda: _index(row), "docs/methods.md": lambda: _table(row)}
    for entry in entries():
        made[f"docs/plugins/{file_of(entry)}"] = lambda entry=entry: _page(entry, row)
    return made


def file_of(entry: Entry) -> str:
    """``rewirer-set.md``."""
    return f"{entry.family}-{entry.name}.md"


def _index(row: Callable[[Iterable[str]], str]) -> str:
    lines = ["# Plugins\n", NOTE.format("the classes in `plugins/`")]
    lines.append(
        "What ships with sparsefleet, a page each. `sparsefleet plugins list` shows what is installed, anyone's packages included;\n"
        "`sparsefleet plugins show NAME` shows one. What classes may declare is on [plugin-api.md](plugin-api.md); which method runs on\n"
        "which layer, and what an update costs, on [methods.md](methods.md).\n"
    )
    for family in plugin.FAMILIES:
        rows = [(f"[{e.name}](plugins/{file_of(e)})", e.summary) for e in entries() if e.family == family]
        lines.append(f"## {family}\n\n| name | |\n|---|---|\n" + "".join(row(r) for r in rows))
    return "\n".join(lines)


def _page(entry: Entry, row: Callable[[Iterable[str]], str]) -> str:
    doc = (inspect.getdoc(getattr(importlib.import_module(entry.module), entry.class_name)) or entry.summary).replace("``", "`")
    parts = [
        f"# {entry.family} {entry.name}\n",
        NOTE.format(f"`plugins/{entry.module.partition('.')[2].replace('.', '/')}.py`"),
        doc + "\n",
    ]
    if entry.facts.get("rule"):
        parts.append(f"**Rule.** {entry.facts['rule']}\n")
    if entry.facts.get("paper"):
        parts.append(f"**Paper.** {_linked(entry.facts['paper'])}\n")
    parts.append(f"## In a grid\n\n```yaml\n{snippet(entry)}```\n")
    properties = entry.schema.get("properties", {})
    if properties:
        header = "## Parameters\n\n| parameter | type | default | bounds | meaning |\n|---|---|---|---|---|\n"
        parts.append(header + "".join(row(_param(key, prop, entry.schema)) for key, prop in properties.items()))
    else:
        parts.append("## Parameters\n\nNone.\n")
    if entry.family in METHODS:
        told = [(name, reason or "yes") for name, reason in layers_of(entry).items()]
        parts.append("## Layers\n\n| layer | runs |\n|---|---|\n" + "".join(row(r) for r in told))
    limits = list(_limits(entry))
    parts.append(
        "## What it cannot do\n\n"
        + ("".join(f"* {text}\n" for text in limits) or "Nothing beyond what every plugin of the family cannot.\n")
    )
    return "\n".join(parts)


def _limits(entry: Entry) -> Iterator[str]:
    if entry.facts.get("cannot"):
        yield entry.facts["cannot"]
    for fact, text in _LIMITS.items():
        if entry.facts.get(fact) is True or entry.facts.get("execution") == fact:
            yield _PRUNER_NEEDS_DENSE if (entry.family, fact) == ("pruner", "needs_dense") else text
    if entry.family == "rewirer" and entry.facts.get("fits_tiles") is False:
        yield "It decides about each connection by itself, so whole blocks cannot follow it."
    devices = entry.facts.get("devices")
    if entry.family == "layer" and devices and list(devices) != ["cpu", "cuda"]:
        yield f"It computes on {', '.join(devices)} only."
    kinds = entry.facts.get("kinds")
    if entry.family == "layer" and kinds and entry.facts.get("topology") != "all":
        yield f"It replaces {', '.join(kinds)} only."
    if entry.family == "layer" and entry.facts.get("multiple_of", 1) > 1:
        yield f"Both sides of a weight must be multiples of {entry.facts['multiple_of']}."
    if entry.family == "layer" and entry.facts.get("topology") == "n:m":
        yield "It takes pruners with pattern n:m only: rewirers are skipped."


def _linked(paper: str) -> str:
    paper = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi:(\S+[^\s,;.)])", r"[doi:\1](https://doi.org/\1)", paper)


def _required(entry: Entry) -> str:
    given = {key: entry.schema["properties"][key].get("examples", [f"my-{key}"])[0] for key in entry.schema.get("required", [])}
    return f"{{{entry.name}: {json.dumps(given)}}}" if given else entry.name


def snippet(entry: Entry) -> str:
    """A whole grid that uses the plugin."""
    own, name = _required(entry), entry.name
    model = own if entry.family == "model" else _MODEL_OF_DATA.get(name, "mlp") if entry.family == "dataset" else "mlp"
    dataset = own if entry.family == "dataset" else _DATA_OF_MODEL.get(name, "digits") if entry.family == "model" else "digits"
    if entry.family == "activation" and name.endswith("2d"):
        model, dataset = "small-cnn", "mnist"
    momentum = "" if entry.facts.get("needs_plain_sgd") else ", momentum: 0.9"
    text = _BASE.format(dataset=dataset, model=model, momentum=momentum)
    if entry.family == "pruner":
        when = "" if entry.facts.get("needs_calibration") and not entry.facts.get("sequential") else ", schedule: {one-shot: {at: 0.5}}"
        when = ", schedule: cubic" if entry.facts.get("revives") else when
        return text + f"density: {_density(entry)}\nmethod: {{pruner: {own}{when}}}\n"
    if entry.family == "rewirer":
        return text + f"density: {_density(entry)}\nmethod: {{rewirer: {own}}}\n"
    if entry.family == "layer" and (entry.facts.get("topology") != "all" or entry.facts.get("narrows")):
        pattern = ', pattern: "n:m"' if entry.facts.get("topology") == "n:m" else ", pattern: neuron" if entry.facts.get("narrows") else ""
        method = f"{{pruner: magnitude, schedule: {{one-shot: {{at: 0.5}}}}{pattern}}}" if pattern else "{rewirer: set}"
        gpus = "resources: {gpus: 1}\n" if entry.facts.get("devices") and "cpu" not in entry.facts["devices"] else ""
        widths = entry.facts.get("multiple_of", 1)
        if widths > 1:
            text = text.replace("model: mlp", f"model: {{mlp: {{hidden: [{widths * 16}, {widths * 16}]}}}}")
            method = method.replace("pruner: magnitude", "pruner: magnitude, keep_dense: [last]")
        return text + gpus + f"density: {0.5 if pattern else 0.1}\nlayer: {own}\nmethod: {method}\n"
    if entry.family == "layer":
        return text + f"layer: {own}\n"
    if entry.family == "connectivity":
        return text + f"density: 0.1\nlayer: csr\nconnectivity: {own}\nmethod: {{rewirer: set}}\n"
    if entry.family == "activation":
        return text + f"activation: {own}\n"
    return text + "density: 0.1\nmethod: {rewirer: set}\n"


def _density(entry: Entry) -> float:
    """0.1, or n/m for a method that is its own density."""
    properties = entry.schema.get("properties", {})
    return properties["n"]["default"] / properties["m"]["default"] if {"n", "m"} <= set(properties) else 0.1


def layers_of(entry: Entry) -> dict[str, str | None]:
    """For every first-party layer, why the method does not run on it, or None if it does."""
    plugins, found = catalog(), {}
    for layer in (e for e in entries() if e.family == "layer" and _is_sparse(e)):
        text = snippet(entry) + f"layer: {layer.name}\ncontrol_arms: []\n"
        if layer.facts.get("requires") or "cpu" not in layer.facts.get("devices", ["cpu"]):
            text += "resources: {gpus: 1}\n" if "cpu" not in layer.facts.get("devices", ["cpu"]) else ""
        if layer.facts.get("topology") == "n:m" and entry.family == "pruner":
            text = text.replace("density: 0.1", "density: 0.5").replace("}\nlayer", ', pattern: "n:m", keep_dense: [first, last]}\nlayer')
        if layer.facts.get("narrows") and entry.family == "pruner":
            text = text.replace("}\nlayer", ", pattern: neuron}\nlayer")
        if layer.facts.get("multiple_of", 1) > 1:
            text = text.replace(
                "model: mlp", f"model: {{mlp: {{hidden: [{16 * layer.facts['multiple_of']}, {16 * layer.facts['multiple_of']}]}}}}"
            )
        skips = [item.reason for item in walk(load_text(text, "page.yaml", catalog=plugins), plugins) if isinstance(item, Skip)]
        skips = [reason for reason in skips if "is not installed" not in reason]
        found[layer.name] = skips[0] if skips else None
    return found


def _is_sparse(layer: Entry) -> bool:
    """Whether a method may run on it, by its own name."""
    return (layer.facts.get("topology") != "all" or bool(layer.facts.get("narrows"))) and not layer.facts.get("chooses")


def _table(row: Callable[[Iterable[str]], str]) -> str:
    """Every pruner and rewirer: where it is tested, where it runs, and what it costs at 4 million connections."""
    lines = ["# Methods\n", NOTE.format("the classes in `plugins/`, the grid checks, `tests/plugins/` and `benchmarks/results/`")]
    costs = _costs()
    lines.append(
        "The reference is a slow float64 implementation in numpy, written from the paper, that the plugin must equal. Costs are medians of updates of one\n"
        "layer with 4 million connections, in training steps of that layer at batch 64 on the machine that `benchmarks/results/` names: *choosing* is\n"
        "scores, draws and selection, *surgery* what becomes of storage, weights and optimizer slots, *at every step* what a method does between updates\n"
        "too. Pruners cut a dense layer to a tenth (`python -m benchmarks updates`).\n"
    )
    for family in METHODS:
        rows = []
        for entry in (e for e in entries() if e.family == family):
            runs = [name for name, reason in layers_of(entry).items() if reason is None]
            cost = costs.get(entry.name, {})
            told = "; ".join(f"{layer}: {text}" for layer, text in sorted(cost.items())) or _no_cost(entry)
            rows.append((f"[{entry.name}](plugins/{file_of(entry)})", f"`{reference_of(entry)}`", ", ".join(runs), told))
        lines.append(
            f"## {family}s\n\n| method | reference test | layers | an update, in steps |\n|---|---|---|---|\n"
            + "".join(row(r) for r in rows)
        )
    return "\n".join(lines)


def reference_of(entry: Entry) -> str:
    """The test that compares the method with its reference.

    Raises:
        SystemExit: there is none.
    """
    for name in (entry.name, entry.name.partition("-")[0]):
        path = ROOT / "tests" / "plugins" / f"test_{name.replace('-', '_')}.py"
        if path.is_file():
            return path.relative_to(ROOT).as_posix()
    shared = ROOT / "tests" / "plugins" / ("test_pruners.py" if entry.family == "pruner" else "test_every_rewirer.py")
    if f'"{entry.name}"' in shared.read_text() or entry.class_name in shared.read_text():
        return shared.relative_to(ROOT).as_posix()
    raise SystemExit(f"{entry.family} {entry.name} has no reference test")


def _no_cost(entry: Entry) -> str:
    return "not measured" if "every" in entry.schema.get("properties", {}) else "never updates"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):.0f}" if value >= 10 else f"{value:.2g}"


def _costs() -> dict[str, dict[str, str]]:
    """By method and layer: choosing and surgery in steps, of the newest results."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("updates-*.json")):
        for figure in json.loads(path.read_text())["figures"]:
            method, _, layer = figure["id"].partition("/")
            over = re.match(r"surgery (?:over (\d+) steps|of every step)", figure["what"])
            steps = figure["value"] * int(over[1] or 1) / 100 if over else figure["value"]  # told in percent of as many steps
            kind = next(word for word in _PARTS if figure["what"].startswith(word))
            found.setdefault(method, {}).setdefault(layer, {})[kind] = steps
    return {
        method: {
            layer: " + ".join(f"{_two_digits(parts[kind])} {kind}" for kind in _PARTS if kind in parts) for layer, parts in layers.items()
        }
        for method, layers in found.items()
    }


def _param(key: str, prop: dict[str, Any], schema: dict[str, Any]) -> tuple[str, ...]:
    options = [prop, *prop.get("anyOf", [])]
    kinds = [o["type"] for o in options if "type" in o]
    signs = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"), ("minItems", "length ≥"))
    bounds = [f"{sign} {o[word]}" for o in options for word, sign in signs if word in o]
    bounds += [f"{sign} {o['items'][word]}" for o in options if "items" in o for word, sign in signs if word in o["items"]]
    choices = [value for o in options for value in (*o.get("enum", []), *([o["const"]] if "const" in o else []))]
    if choices:
        bounds.append("one of " + ", ".join(map(str, choices)))
    default = "required" if key in schema.get("required", []) else f"`{json.dumps(prop.get('default'))}`"
    return f"`{key}`", " or ".join(kinds) or "object", default, ", ".join(bounds), prop.get("description", "")
