"""``config show``."""

from __future__ import annotations

import click

from sparsefleet.cli.session import Session, json_option, user_file, verb
from sparsefleet.cli.settings import PROJECT_FILE, SETTINGS
from sparsefleet.cli.talk import data, emit, say


@click.group(epilog="\b\nExample:\n  sparsefleet config show")
def config() -> None:
    """Settings and where they come from."""


def show(session: Session, as_json: bool) -> None:
    """Every setting with its value and its origin.

    A flag wins over the environment, that over sparsefleet.toml in this folder or above, that over your own file, that over the default.
    """
    from sparsefleet.report.layout import Column, text_lines

    found = session.settings
    if as_json:
        emit({"settings": [{"name": n, "value": v.value, "origin": v.origin, "env": SETTINGS[n].env} for n, v in found.items()]})
        return
    rows = [("" if v.value is None else str(v.value), v.origin, SETTINGS[n].env) for n, v in found.items()]
    cells = list(zip(*rows, strict=True))
    data(
        text_lines(
            [Column("setting", list(found)), *(Column(h, c) for h, c in zip(("value", "origin", "environment"), cells, strict=True))]
        )
    )
    say(f"files: {PROJECT_FILE} in this folder or above, then {user_file()}")


config.add_command(verb("show", "config show", "config show --json", short="Every setting with its origin.")(json_option(show)))
