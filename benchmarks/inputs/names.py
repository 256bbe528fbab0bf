"""BI-06: two hundred hostile names: none becomes a path outside of the home, and none reaches a terminal, a page or a spreadsheet as it is."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

from markdown_it import MarkdownIt

from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run
from benchmarks.inputs.command import command
from benchmarks.inputs.nasty import HEAD
from sparsefleet.cli.talk import data, say
from sparsefleet.errors import SparsefleetError
from sparsefleet.grid.load import load_text
from sparsefleet.ledger.lock import lock_path
from sparsefleet.registry import keep_catalog
from sparsefleet.report.csv import to_csv
from sparsefleet.report.layout import Column, markdown_lines, text_lines
from sparsefleet.track.facts import run_name

SEEDS = (
    *("../../x", "/etc/passwd", "..", ".", ".hidden", "a/../../b", "C:\\x", "~/x", "$HOME", "a\0b", "x" * 300, "", " ", "con\n", "a\tb"),
    *(
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</td><b>",
        '"><svg/onload=1>',
        "javascript:alert(1)",
        "&lt;",
        "[x](javascript:1)",
    ),
    *(
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "\x1b]8;;http://e\x1b\\x",
        "\x9b2J",
        "a\rb",
        "\u202egnp.exe",
        "\u2066x\u2069",
        "\x07",
        "\x08\x08x",
        "\u200f",
        "\x90q\x9c",
        "\x9dtitle\x9c",
        "\x7f\x85\x84",
        "\x1b(0",
        "\x0e",
    ),
    *(
        "=1+1",
        "+cmd|'/C calc'!A0",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        " =1",
        "\x1b[0m=1",
        "\u202e=1",
        "\u200b=1",
        "\ufeff+1",
        "\uff1d1+1",
        "<b>|=1",
        "|x|",
        "`id`",
        "$(id)",
        ";id",
        "%s%n",
        "{0}",
        "a,b",
        'a"b',
        "a'b",
        "\ud800",
    ),
)
_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
_OF_A_TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_MARKS = "\u061c\u200e\u200f"
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_VERBS = {
    ("status",): "unknown sweep",
    ("cancel",): "unknown sweep",
    ("logs",): "unknown trial",
    ("plugins", "show"): "no plugin is called",
}
"""Commands that take a name, and what they say of one that is nobody's."""


def hostile(n: int) -> list[str]:
    """``n`` names: the seeds, then pairs of them with something harmless between."""
    rng = random.Random(6)
    found = list(SEEDS)
    while len(found) < n:
        one = rng.choice(SEEDS)[:80] + rng.choice(("", "a", "-", "/")) + rng.choice(SEEDS)[:80]
        if one not in found and not _SAFE.fullmatch(one):
            found.append(one)
    return found[:n]


class _Nodes(HTMLParser):
    """What a browser would make of a text: elements and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def figures(run: Run) -> list[Figure]:
    """Names that were taken for a file, or stand unescaped in what people open."""
    names = hostile(run.pick(200, len(SEEDS)))
    keep_catalog()
    escaped: list[tuple[str, str]] = []
    n_refused = 0
    with _entered() as (world, home):
        there = _files(world)
        for name in names:
            refusals = [_refusal(verb, name) for verb in _VERBS]
            n_refused += refusals.count("")
            wrong = [*_as_grid(home, name), *filter(None, refusals)]
            now = _files(world)
            wrong += [f"touched {path}" for path in sorted(there.keys() | now.keys()) if there.get(path) != now.get(path)]
            escaped += [(name, why) for why in wrong]
            there = now
    shown = [(name, where) for name in names for where in _shown(name)]
    run.keep({"escaped": [[ascii(a), b] for a, b in escaped], "shown": [[ascii(a), b] for a, b in shown]})
    return [
        Figure("names that got out of the home", "names", len({a for a, _ in escaped}), target=0, at_least=False, note=_note(escaped)),
        Figure(
            "names unescaped on a terminal, page or sheet", "names", len({a for a, _ in shown}), target=0, at_least=False, note=_note(shown)
        ),
        Figure("hostile names", "names", len(names), target=run.pick(200, len(SEEDS))),
        Figure("refusals that repeat the name, harmlessly", "commands", n_refused, target=len(_VERBS) * len(names)),
    ]


def _note(found: list[tuple[str, str]]) -> str:
    return "; ".join(f"{ascii(name)[:40]}: {why}" for name, why in found[:4])


@contextmanager
def _entered() -> Iterator[tuple[Path, Path]]:
    """A folder, and a home deep in it that holds one sweep; the user's own home and where commands run lie in the folder, too."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-names-") as folder:
        world = Path(folder).resolve()
        user, home = world / "user", world / "a" / "b" / "c" / "home"
        user.mkdir()
        home.mkdir(parents=True, mode=0o700)
        own = {"HOME": str(user), "SPARSEFLEET_HOME": str(home), "SPARSEFLEET_CACHE": str(user / "cache")}
        here = Path.cwd()
        os.chdir(home.parent)
        try:
            with mock.patch.dict(os.environ, own):
                sweep = Sweep(home, 1)
                for verb in (("status", sweep.id), ("plugins", "show", "csr")):  # what a first command makes
                    if (said := command(*verb)).code:
                        raise RuntimeError(f"{' '.join(verb)} ended with {said.code}: {said.text}")
                yield world, home
        finally:
            os.chdir(here)


def _files(world: Path) -> dict[str, str]:
    """Everything in ``world`` by its digest or kind, and by its time what a name with a root could reach."""
    inside = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else oct(path.lstat().st_mode)
        for path in world.rglob("*")
        if not path.name.endswith("-shm")  # SQLite's: readers write in it
    }
    return inside | {str(path): str(path.lstat().st_mtime_ns) for path in Path("/etc").glob("passwd*")}


def _as_grid(home: Path, name: str) -> Iterator[str]:
    """As a grid's name: refused, or harmless as a file's name."""
    try:
        text = HEAD.replace("name: small", f"name: {json.dumps(name)}")
        sweep = load_text(text, "g.yaml", catalog=keep_catalog()).sweep
    except SparsefleetError as error:
        if _steers(str(error)):
            yield "the refusal of the grid repeats it"
    else:
        if not lock_path(home, sweep).resolve().is_relative_to((home / "locks").resolve()):
            yield f"sweep {sweep}"
        if not _SAFE.fullmatch(name):
            yield "taken as a grid's name"


def _refusal(verb: tuple[str, ...], name: str) -> str:
    """What was wrong with how a command refused a name that nothing has; empty if it did so in words that repeat it harmlessly."""
    said = command(*verb, "--", name)
    right = said.code in (2, 3) and f"{_VERBS[verb]} {name!r}" in said.text and not _steers(said.text)
    return "" if right else f"{' '.join(verb)} ended with {said.code}: {said.text[:120]!a}"


def _steers(text: str, lines: bool = True) -> bool:
    """Whether a terminal would do something else than print it: a control character, a surrogate, or one that turns the direction of writing.

    Judged by Unicode's own tables and not by what the product takes out.

    Args:
        lines: whether line breaks and tabs may stand in it.
    """
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs") and not (lines and char in "\n\t"):  # C0 with ESC, DEL, C1; halves of a pair
            return True
        if unicodedata.bidirectional(char) in _TURNS or char in _MARKS:
            return True
    return False


def _is_formula(cell: str) -> bool:
    """Whether a spreadsheet would reckon with the cell: OWASP's first characters, after what a spreadsheet leaves out before them."""
    return cell.lstrip(" \u00a0\ufeff\u200b\u3000")[:1] in tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def _shown(name: str) -> Iterator[str]:
    """As a label in tables, pages, sheets, runs and talk."""
    import contextlib

    columns = [Column("method", [name, "x"]), Column(name, ["1", "2"])]
    if any(_steers(line) for line in text_lines(columns)):
        yield "terminal table"
    markdown = "\n".join(markdown_lines(columns))
    nodes = _Nodes()
    nodes.feed(_MARKDOWN.render(markdown))
    if set(nodes.tags) != _OF_A_TABLE or _steers(markdown):
        yield f"Markdown page: {sorted(set(nodes.tags) - _OF_A_TABLE)}"
    if (nodes.tags.count("th"), nodes.tags.count("td")) != (2, 4):
        yield "a table cell that is two"
    rows = list(csv.reader(io.StringIO(to_csv([{"method": name, name or "empty": 1}]), newline="")))
    if any(_is_formula(cell) or _steers(cell) for row in rows for cell in row):
        yield "CSV"
    for talk in (data, say):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            talk(f"trial {name} ended")
        if _steers(out.getvalue()):
            yield talk.__name__
    if not _SAFE.fullmatch(run_name(_row(name))):
        yield "MLflow run name"


def _row(name: str) -> Any:
    from sparsefleet.ledger import TrialRow

    spec = {"density": 0.5, "layer": {"name": name or "x"}, "seed": 0}
    empty = dict.fromkeys(TrialRow.__dataclass_fields__)
    return TrialRow(**{**empty, "spec": spec, "spec_id": "0123456789ab", "arm": "dense"})
