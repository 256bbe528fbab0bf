"""The root of the command tree, and how every run of it ends: one exit code, one message."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn, cast

import click

from sparsefleet.cli.session import Session, shared_options
from sparsefleet.cli.talk import report_bug, report_error, report_usage, say
from sparsefleet.errors import SparsefleetError, did_you_mean

_VERBS = {
    "submit": "submit:submit",
    "plan": "plan:plan",
    "run": "run:run",
    "measure": "measure:measure",
    "status": "status:status",
    "watch": "watch:watch",
    "logs": "logs:logs",
    "cancel": "cancel:cancel",
    "resume": "resume:resume",
    "compare": "compare:compare",
    "pictures": "pictures:pictures",
    "reproduce": "reproduce:reproduce",
    "ui": "ui:ui",
    "plugins": "plugins:plugins",
    "doctor": "doctor:doctor",
    "config": "config:config",
    "completion": "completion:completion",
}


class LazyGroup(click.Group):
    """A group whose commands are ``module:attribute`` of this package, imported when they are asked for; listed in the given order."""

    def __init__(self, *args: Any, verbs: Mapping[str, str], **named: Any) -> None:
        super().__init__(*args, **named)
        self.verbs = verbs

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the close match taken from the lazy names too."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if self.get_command(ctx, args[0]) is not None or args[0].startswith("-"):
                raise
            raise click.UsageError(f"no such command {args[0]!r}; {did_you_mean(args[0], self.list_commands(ctx))}", ctx) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the tree."""
        return [*self.verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        module, attribute = self.verbs[cmd_name].split(":")
        return cast("click.Command", getattr(import_module(f"sparsefleet.cli.{module}"), attribute))


class _ReaderGone(Exception):
    """Whoever read our output has read enough; click would end with 1 on the OSError that it is."""


class Root(LazyGroup):
    """Turns what a verb raises into the exit codes of the product."""

    def main(self, *args: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """Runs a command line; with ``standalone_mode`` ends the process, else returns the exit code."""
        session = Session()
        code = self._code(session, *args, obj=session, **named)
        if standalone_mode:
            _end(code)
        return code

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def _code(self, session: Session, *args: Any, **named: Any) -> int:
        try:
            result = cast("Any", super()).main(*args, standalone_mode=False, **named)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except click.ClickException as error:  # bad input: click names the option and the close match
            return report_usage(error)
        except (click.Abort, KeyboardInterrupt):
            say("interrupted")
            return 130
        except (_ReaderGone, BrokenPipeError):  # `| head`; in the last flush it is still the OSError
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:  # noqa: BLE001  the outermost frame: whatever arrives here becomes a message and a code
            return report_error(_in_words(error, session), session.debug) or report_bug(error, session)


def _in_words(error: Exception, session: Session) -> Exception:
    """The error; of whatever says that a disk is full the one that names the disk of the home, unless it names its own."""
    from sparsefleet.space import means_no_space, min_free_mib, no_space

    if isinstance(error, SparsefleetError) or not means_no_space(error):
        return error
    found = no_space(session.home, min_free_mib())
    found.__cause__ = error
    return found


def _end(code: int) -> NoReturn:
    """Ends the process. Where Ray waits for a head that does not answer, Python's own end would crash in Ray's threads and lose the code."""
    if any(thread.name == "ray-shutdown" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from sparsefleet import __version__

        click.echo(f"sparsefleet {__version__}")
        ctx.exit()


@click.group(
    cls=Root,
    verbs=_VERBS,
    name="sparsefleet",
    epilog="\b\nExample:\n  sparsefleet submit grid quickstart",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
@shared_options
def cli() -> None:
    """Benchmarks sparse neural networks against their dense twins, from a grid file to a table one can trust."""
