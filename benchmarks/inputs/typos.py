"""BI-04: a hundred words with one slip of the finger, at the command line; what is suggested first."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.figures import Figure, Run
from benchmarks.inputs.command import command
from benchmarks.inputs.nasty import HEAD
from sparsefleet.cli.app import cli
from sparsefleet.grid.settings import ROOT
from sparsefleet.registry import keep_catalog

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
Ask = Callable[[str], str]


def one_edit(word: str, rng: random.Random) -> str:
    """``word`` with a letter left out, put in, doubled or changed, or two swapped; its beginning signs stay."""
    at, letter = rng.randrange(len(word)), rng.choice(_LETTERS)
    swapped = word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :]
    edits = [
        word[:at] + word[at + 1 :],
        word[:at] + letter + word[at:],
        word[:at] + letter + word[at + 1 :],
        word[: at + 1] + word[at:],
        swapped,
    ]
    return rng.choice(edits)


def asked(folder: Path) -> list[tuple[str, str, Ask]]:
    """(kind, word, what is said of a word in its place)."""
    plugins = keep_catalog()

    def of_grid(text: str) -> Ask:
        def ask(word: str) -> str:
            path = folder / "grid.yaml"
            path.write_text(
                HEAD.replace("train: {epochs: 2}\n", "" if "train:" in text else "train: {epochs: 2}\n") + text.replace("@", word)
            )
            return command("plan", str(path)).text

        return ask

    def of_line(*arguments: str) -> Ask:
        return lambda word: command(*(part.replace("@", word) for part in arguments)).text

    root = click.Context(cli)
    submit = cli.get_command(root, "submit")
    assert isinstance(submit, click.Group)
    grid = submit.get_command(root, "grid")
    assert grid is not None
    options = [name.removeprefix("--") for one in grid.params for name in one.opts if name.startswith("--") and len(name) > 5]
    found: list[tuple[str, str, Ask]] = [("command", name, of_line("@")) for name in cli.list_commands(root)]
    found += [("option", name, of_line("submit", "grid", "quickstart", "--@")) for name in options]
    found += [("key", name, of_grid("@: 1\n")) for name in ROOT]
    for family, text in (("pruner", "method: {pruner: @}\n"), ("rewirer", "method: {rewirer: @}\n"), ("layer", "layer: @\n")):
        found += [("plugin", name, of_grid(text)) for name in plugins.names(family)]
    found += [("plugin", name, of_grid("connectivity: @\n")) for name in plugins.names("connectivity")]
    for name in ("rigl", "set", "mest", "snfs"):
        known = plugins.get("rewirer", name).schema.get("properties", {})
        found += [("parameter", parameter, of_grid(f"method: {{rewirer: {{{name}: {{@: 1}}}}}}\n")) for parameter in known]
    found += [("key", name, of_grid("train: {epochs: 1, @: 1}\n")) for name in ("batch_size", "weight_decay", "precision")]
    return [one for one in found if len(one[1]) > 3]  # a slip in "set" makes other words as near


def suggested(text: str) -> str:
    """The first suggestion."""
    match = re.search(r"[Dd]id you mean(?: one of)?:? '?(-{0,2}[\w.-]+)", text)
    return match[1].removeprefix("--") if match else ""


def figures(run: Run) -> list[Figure]:
    """Of a hundred typos, spread evenly over commands, options, keys, plugins and parameters, those whose first suggestion is the word."""
    rng = random.Random(4)
    wrong, kinds, right = [], {}, 0
    with tempfile.TemporaryDirectory(prefix="sparsefleet-typos-") as folder:
        every = asked(Path(folder))
        known = {word for _, word, _ in every}
        by_kind = {kind: [one for one in every if one[0] == kind] for kind, _, _ in every}
        n = 0
        while n < 100:
            kind, word, ask = rng.choice(by_kind[list(by_kind)[n % len(by_kind)]])
            typo = one_edit(word, rng)
            if typo in known or typo.startswith("-"):
                continue
            n += 1
            text = ask(typo)
            kinds[kind] = kinds.get(kind, 0) + 1
            right += suggested(text) == word
            if suggested(text) != word:
                wrong.append(f"{kind} {typo} for {word}: {suggested(text)!r} in {text[:160]!r}")
    run.keep({"kinds": kinds, "wrong": wrong})
    note = "; ".join([", ".join(f"{n} {kind}" for kind, n in kinds.items()), *(one.split(" in ")[0] for one in wrong)])
    return [Figure("typos whose first suggestion is right", "of 100", right, target=95, note=note)]
