"""``completion``."""

from __future__ import annotations

import click

from sparsefleet.cli.session import Session, verb
from sparsefleet.cli.talk import say

_SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": 'eval "$(sparsefleet completion bash)"   # a line of ~/.bashrc',
    "zsh": 'eval "$(sparsefleet completion zsh)"    # a line of ~/.zshrc, after compinit',
    "fish": "sparsefleet completion fish > ~/.config/fish/completions/sparsefleet.fish",
}


@verb(
    "completion", "completion bash", "completion fish > ~/.config/fish/completions/sparsefleet.fish", short="A shell's completion script."
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(session: Session, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from sparsefleet.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "sparsefleet", "_SPARSEFLEET_COMPLETE").source())
    say(f"to install: {_WHERE[shell]}")
