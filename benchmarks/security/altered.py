"""SE-03: under an allow-list, a plugin that is not on it, or of which one byte has changed, is named and never imported: it would leave a file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Run
from benchmarks.security.small import SmallHome

SOURCE = '''"""Magnitude, and a mark where it was imported."""
import os
from pathlib import Path
from sparsefleet import Pruner, hookimpl

(Path(os.environ["CANARIES"]) / "{name}").touch()

class Marked(Pruner):
    """Magnitude."""
    name = "{name}"
    def score(self, conn):
        return conn.weight.abs()  # byte

@hookimpl
def sparsefleet_pruners():
    return [Marked]
'''


def install(site: Path, name: str) -> Path:
    """A distribution ``sf-NAME`` of one module; the module's file."""
    module = f"sf_{name}"
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(SOURCE.format(name=name))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sf-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sparsefleet]\n{module} = {module}\n")
    return site / f"{module}.py"


def commands(here: SmallHome, name: str) -> Iterator[tuple[str, ...]]:
    """What would import it."""
    grid = here.grid(name, f"method: {{pruner: {name}}}")
    yield from (
        ("plugins", "list", "--refresh"),
        ("plugins", "show", f"sf_{name}"),
        ("plan", str(grid)),
        ("run", str(grid), "--point", "1"),
        ("submit", "grid", str(grid)),
        ("doctor",),
    )


def figures(run: Run) -> list[Figure]:
    """Refused plugins that were imported all the same, commands that name them, and the listed one, which must work."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-altered-") as name:
        folder = Path(name)
        site, canaries, listed = folder / "site", folder / "canaries", folder / "allowed.toml"
        canaries.mkdir()
        files = {one: install(site, one) for one in ("listed", "altered", "unlisted")}
        here = SmallHome(folder, {"PYTHONPATH": str(site), "CANARIES": str(canaries)})
        entries = [_entry(here, f"sf-{one}") for one in ("listed", "altered")]
        listed.write_text("\n".join(entries))
        raw = files["altered"].read_bytes()
        files["altered"].write_bytes(raw.replace(b"# byte", b"# bytE"))
        for old in canaries.iterdir():  # before the list, everything may be imported
            old.unlink()
        here.environment["SPARSEFLEET_ALLOW_LIST"] = str(listed)
        unnamed, wrong = [], []
        for one in ("unlisted", "altered"):
            for command in commands(here, one):
                done = here.command(*command)
                if f"sf-{one}" not in done.stdout + done.stderr or "Traceback" in done.stderr:
                    unnamed.append(f"{' '.join(command)[:30]}: {(done.stderr or done.stdout)[-160:]}")
                if command[0] in ("plan", "run", "submit") and done.returncode not in (2, 3):
                    wrong.append(f"{command[0]} ended with {done.returncode}")
        imported = sorted(path.name for path in canaries.iterdir() if path.name != "listed")
        works = here.command("run", str(here.grid("listed", "method: {pruner: listed}")), "--point", "1")
        ran = works.returncode == 0 and (canaries / "listed").exists()
    run.keep({"imported": imported, "unnamed": unnamed, "wrong": wrong, "listed": works.stderr[-500:]})
    return [
        Figure("refused plugins that were imported", "plugins", len(imported), target=0, at_least=False, note=", ".join(imported)),
        Figure(
            "commands that did not name what they refused", "commands", len(unnamed), target=0, at_least=False, note="; ".join(unnamed[:2])
        ),
        Figure("commands that went on", "commands", len(wrong), target=0, at_least=False, note="; ".join(wrong)),
        Figure("the listed plugin runs", "plugins", int(ran), target=1, note="" if ran else works.stderr[-200:]),
    ]


def _entry(here: SmallHome, distribution: str) -> str:
    text = here.command("plugins", "allow", distribution).stdout
    if not re.search(r"digest = \"[0-9a-f]{64}\"", text):
        raise RuntimeError(f"plugins allow {distribution} printed no entry: {text[:300]}")
    return text
