"""What every verb shares: the settings of this run, and the options that set them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from sparsefleet.cli.settings import SETTINGS, Value, export, resolve
from sparsefleet.cli.talk import RELAYED

_F = TypeVar("_F", bound=Callable[..., Any])


class Session:
    """One run of the command line."""

    def __init__(self) -> None:
        self.flags: dict[str, str] = {}
        self.debug = False

    @cached_property
    def settings(self) -> dict[str, Value]:
        """Every setting with its origin; from here on the environment of this process and its children says the same."""
        found = resolve(self.flags, os.environ, Path.cwd(), user_file())
        export(found)
        return found

    def get(self, name: str) -> Any:
        """The value of one setting."""
        return self.settings[name].value

    @property
    def home(self) -> Path:
        """Where the sweeps' state lies; not created."""
        return Path(self.get("home"))

    @property
    def plugin_flags(self) -> str:
        """The ``--plugin`` options of this run, to be said again with the next command."""
        return "".join(f" --plugin {shlex.quote(path)}" for path in self.flags.get("plugins", "").split(os.pathsep) if path)

    @property
    def cluster_url(self) -> str | None:
        """The dashboard of the cluster whose sweeps are meant; None if they are those of a home on this machine."""
        address = str(self.get("address"))
        return address if address.startswith(("http://", "https://")) else None

    def made_home(self) -> Path:
        """The same, created 0700; from here on this process makes private files."""
        from sparsefleet.home import home, keep_private

        keep_private()
        self.settings  # noqa: B018  exports SPARSEFLEET_HOME
        return home()


pass_session = click.make_pass_decorator(Session, ensure=True)


def user_file() -> Path:
    """The user's own settings."""
    return Path(click.get_app_dir("sparsefleet")) / "config.toml"


def setting_option(name: str, *, flag: str | None = None, metavar: str | None = None) -> Callable[[_F], _F]:
    """An option that is one of the settings; without it the environment, the files and the default decide."""
    setting = SETTINGS[name]

    def remember(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.ensure_object(Session).flags[name] = value

    return click.option(
        flag or "--" + name.replace("_", "-"),
        f"_{name}",
        metavar=metavar or setting.kind.upper(),
        expose_value=False,
        callback=remember,
        help=setting.help + ".",
    )


def plugin_option(command: _F) -> _F:
    """``--plugin``: the setting ``plugins``, a file each time."""

    def remember(ctx: click.Context, _: click.Parameter, files: tuple[str, ...]) -> None:
        for file in files:
            if os.pathsep in file:
                raise click.BadParameter(f"{file!r} holds {os.pathsep!r}, which separates files in SPARSEFLEET_PLUGINS; rename it")
        if files:
            ctx.ensure_object(Session).flags["plugins"] = os.pathsep.join(files)

    option = click.option(
        "--plugin",
        "_plugins",
        multiple=True,
        metavar="FILE.py",
        expose_value=False,
        callback=remember,
        help="Use a plugin that is one file, in place of those that SPARSEFLEET_PLUGINS names. Repeatable.",
    )
    return option(command)


def shared_options(command: _F) -> _F:
    """``--home`` and ``--debug``."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Session).debug = True

    debug = click.option("--debug", is_flag=True, expose_value=False, callback=remember, help="Show the traceback of an error.")
    return debug(setting_option("home")(command))


def verb(name: str, *examples: str, short: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with the shared options, and its examples at the end of its help; ``short`` stands in the list of commands.

    One that is about a home's sweeps takes ``--address`` too, and is relayed to the cluster that is meant.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        title = "Example:" if len(examples) == 1 else "Examples:"
        epilog = "\b\n" + "\n".join([title, *(f"  sparsefleet {example}" for example in examples)])

        def here_or_there(session: Session, /, **given: Any) -> Any:
            about_sweeps = name in RELAYED or bool(given.get("cluster"))
            if about_sweeps and session.cluster_url:
                from sparsefleet.cli.relay import relay

                leave(relay(session, session.cluster_url, click.get_current_context()))
            return function(session, **given)

        command = update_wrapper(pass_session(here_or_there), function)
        if name in (*RELAYED, "doctor"):
            command = setting_option("address")(command)
        return click.command(name, epilog=epilog, short_help=short)(shared_options(command))

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help='Print one JSON object with "schema": 1.')


def leave(code: int) -> NoReturn:
    """Ends the command with this exit code."""
    click.get_current_context().exit(code)
