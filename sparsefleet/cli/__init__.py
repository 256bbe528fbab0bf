"""The command line. Importing it imports neither torch nor ray nor mlflow nor pydantic; a verb's module loads when it is called."""

from __future__ import annotations


def main() -> None:
    """Entry point."""
    from sparsefleet.cli.app import cli

    cli()
