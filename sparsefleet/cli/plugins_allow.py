"""``plugins allow``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from sparsefleet.cli.session import Session, plugin_option, verb
from sparsefleet.cli.talk import data, say

if TYPE_CHECKING:
    from importlib.metadata import Distribution


@verb(
    "allow",
    "plugins allow sf-saliency >> allow.toml",
    "plugins allow my_pruner.py --plugin ./my_pruner.py >> allow.toml",
    short="Entries for an allow-list.",
)
@click.argument("distributions", nargs=-1, required=True, metavar="DISTRIBUTION...")
@plugin_option
def allow(session: Session, distributions: Sequence[str]) -> None:
    """Print the entry of each DISTRIBUTION for an allow-list: its name, its version and the digest of all its files.

    Where SPARSEFLEET_ALLOW_LIST (or allow_list in sparsefleet.toml) names such a file, nothing else is imported. Nothing is imported here.
    """
    from sparsefleet.distributions import files_digest

    session.settings  # noqa: B018  exports the plugins' places
    for dist in [_find(name) for name in distributions]:
        data(
            [
                "[[allow]]",
                f'distribution = "{dist.metadata["Name"]}"',
                f'version = "{dist.version}"',
                f'digest = "{files_digest(dist)}"',
                "",
            ]
        )
    say("read the code before you list it; the setting allow_list or SPARSEFLEET_ALLOW_LIST names the file")


def _find(name: str) -> Distribution:
    from sparsefleet.distributions import with_plugins
    from sparsefleet.errors import UserError, did_you_mean
    from sparsefleet.one_file import activate

    activate()
    found = {str(dist.metadata["Name"]): dist for dist in with_plugins()}
    if name not in found:
        raise UserError(f"no distribution {name!r} with plugins is installed", fix=did_you_mean(name, found))
    return found[name]
