"""BI-02: nasty grid files, and files that are none, at the command line. Exit 2 with file, line and key, or the documented value."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import Figure, Run
from benchmarks.inputs.command import command
from benchmarks.inputs.nasty import HEAD, NASTY
from sparsefleet.grid.load import load_grid
from sparsefleet.registry import keep_catalog

ONLY_OF_TESTS = ("wrecked", "convnet")
"""Plugins that only the tests' catalogue has."""
WELL = "layer: csr\ndensity: 0.5\nmethod: {rewirer: set}\n"
VALUES = {
    "optimizer.sgd.lr=1e-3": ("optimizer", {"sgd": 0.001}),
    "train.epochs=010": ("train", {"epochs": 10}),
    "train.batch_size=0x20": ("train", {"batch_size": 32}),
}
"""What YAML 1.2 makes of texts that YAML 1.1 reads otherwise."""


class Case(NamedTuple):
    """A file, and what must be said of it."""

    path: Path
    parts: list[str]


def cases(folder: Path) -> Iterator[Case]:
    """The nasty texts, and what is no text of a sensible size."""
    for number, (text, line, parts) in enumerate(NASTY):
        if not any(word in text for word in ONLY_OF_TESTS):
            path = folder / f"{number}.yaml"
            path.write_bytes((text[1:] if text.startswith("!") else HEAD + text).encode("utf-8", "surrogatepass"))
            yield Case(path, [f"{path}:{line} ", *parts])
    os.mkfifo(folder / "fifo.yaml")
    yield Case(folder / "fifo.yaml", ["fifo.yaml", "not a regular file"])
    yield Case(folder, ["is a directory"])
    with (folder / "big.yaml").open("wb") as stream:
        stream.truncate(10 * 2**30)  # holds no block of the disk
    yield Case(folder / "big.yaml", ["big.yaml", "10,737,418,240 bytes"])
    for name, raw in {"latin": b"name: \xe4\n", "utf16": "name: x\n".encode("utf-16"), "cut": b"name: x\n# \xf0\x9f\n"}.items():
        (folder / f"{name}.yaml").write_bytes(raw)
        line = raw.count(b"\n", 0, raw.find(b"\xf0")) + 1 if name == "cut" else 1
        yield Case(folder / f"{name}.yaml", [f"{name}.yaml:{line}", "is not UTF-8"])
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    yield Case(folder / "loop.yaml", ["loop.yaml"])
    yield Case(Path("/dev/zero"), ["not a regular file"])


def figures(run: Run) -> list[Figure]:
    """Files that are refused as they should be, the slowest, and values that are read as documented."""
    keep_catalog()
    command("plan", "quickstart")
    wrong, slowest_s, n = [], 0.0, 0
    with tempfile.TemporaryDirectory(prefix="sparsefleet-nasty-") as name:
        folder = Path(name)
        for case in cases(folder):
            begun = time.process_time()
            said = command("plan", str(case.path))
            slowest_s = max(slowest_s, time.process_time() - begun)
            n += 1
            lines = [one for one in said.text.splitlines() if case.parts[0] in one]
            told = said.code == 2 and any(all(part in one for part in case.parts) for one in lines or [said.text])
            if not told or "Traceback" in said.text:
                wrong.append(f"{case.path.name}: {said.code}: {said.text[:300]} (wanted {case.parts})")
        n_read, n_values = _documented(folder)
    run.keep(wrong)
    return [
        Figure("nasty files refused with file, line and key", "files", n - len(wrong), target=n, note="; ".join(wrong)[:200]),
        Figure("nasty files", "files", n, target=40),
        Figure("slowest, processor time", "s", slowest_s, target=1.0, at_least=False),
        Figure("values read as documented", "values", n_read, target=n_values),
    ]


def _documented(folder: Path) -> tuple[int, int]:
    """How many values are what YAML 1.2 says, a byte-order mark and CRLF among them, and of how many."""
    path = folder / "good.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + WELL).replace("\n", "\r\n").encode())
    good = 0
    for setting, (key, wanted) in VALUES.items():
        found = load_grid(str(path), set_=[setting]).base[key]
        if key == "optimizer":
            found = {name: params["lr"] for name, params in found.items()}
        good += all(found[name] == value for name, value in wanted.items())
    plain = folder / "plain.yaml"
    plain.write_text(HEAD + WELL)
    good += load_grid(str(path)).digest == load_grid(str(plain)).digest
    return good, len(VALUES) + 1
