"""``plugins new``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from sparsefleet.cli.session import Session, json_option, verb
from sparsefleet.cli.talk import data, emit, say


def _new(session: Session, family: str, name: str, into: str, as_json: bool) -> None:
    """Write a plugin project that works: a module to change, its conformance test, a grid.

    FAMILY is pruner, rewirer, layer, connectivity, activation, model or dataset. The project is written to the new folder sf-NAME.
    """
    from sparsefleet.scaffold import write

    session.settings  # noqa: B018  exports the cache's place
    folder = write(family, name, Path(into))
    commands = [
        f"cd {shlex.quote(str(folder))}",
        "pip install -e '.[test]'",
        f"sparsefleet plugins check {name}",
        "pytest",
        "sparsefleet submit grid grid.yaml",
    ]
    if as_json:
        made = sorted(path.name for path in folder.iterdir())
        emit({"family": family, "name": name, "folder": folder, "files": made, "next": commands})
        return
    data(str(path) for path in sorted(folder.iterdir()))
    say("next:")
    for command in commands:
        say(f"  {command}")


_into = click.option("--into", metavar="FOLDER", default=".", help="Where the new folder goes; default: here.")
new = verb(
    "new", "plugins new pruner my-method", "plugins new layer my-layer --into plugins --json", short="A plugin project to start from."
)(click.argument("family")(click.argument("name")(_into(json_option(_new)))))
