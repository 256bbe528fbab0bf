"""Runs a verb on a cluster's head node, where the sweeps' home is, and gives its output, its talk and its exit code here."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from uuid import uuid4

import click
from click.core import ParameterSource

from sparsefleet.cli.session import Session
from sparsefleet.cli.talk import next_command, say
from sparsefleet.errors import BackendUnreachable, PluginError, UserError
from sparsefleet.fleet.remote import ENDED, JobServer
from sparsefleet.fleet.remote_frames import Reader
from sparsefleet.report.plain import plain

_THERE = ("home", "data", "cache", "artifacts", "mlflow_uri", "allow_list")
"""Settings of the machine that runs the trials."""
_HERE = ("address", "plugins")
_POLL_S = 0.1
_POLL_LIMIT_S = 10.0
_POLL_LIMIT_CHARACTERS = 256 << 10
_AGAIN_LIMIT_S = 300.0
_AGAIN_EVERY_S = 2.0
_TIDY_AFTER_MS = 10_000
_PREFIX = "sparsefleet-verb-"


def relay(session: Session, url: str, ctx: click.Context) -> int:
    """Runs the verb of ``ctx`` on the cluster; its exit code.

    Raises:
        UserError: it says something that is the cluster's to say, or what cannot be sent.
        BackendUnreachable: the cluster does not answer, or the verb did not end by itself.
        PluginError: the head node has no sparsefleet.
    """
    for name in _THERE:
        if name in session.flags:
            raise UserError(
                f"--{name.replace('_', '-')} does not go together with the address of a cluster",
                cause=f"{url} has settings of its own: those of the environment in which its head was started",
                fix="leave it out, or sparsefleet … --address HOST:PORT on a node of the cluster",
            )
    parcel = _parcel(session, ctx)
    server = JobServer(url)
    flag = f"--address {shlex.quote(url)}" if "address" in session.flags else ""
    line = entrypoint(*said_again(session, ctx), has_parcel=parcel is not None, flag=flag)
    try:
        return _followed(server, line, server.upload(parcel) if parcel is not None else None)
    except KeyboardInterrupt:
        return _detached(server, ctx)


def said_again(session: Session, ctx: click.Context) -> tuple[list[str], list[str]]:
    """The command line said again, without what concerns this machine only: verb and options, then arguments."""
    verb, options, arguments = _names(ctx), [], []
    for parameter in ctx.command.params:
        if (
            parameter.name is None
            or not parameter.expose_value
            or ctx.get_parameter_source(parameter.name) is not ParameterSource.COMMANDLINE
        ):
            continue
        value = ctx.params[parameter.name]
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options.append(parameter.opts[-1] if value else parameter.secondary_opts[-1])
        else:
            options += [f"{parameter.opts[0]}={one}" for one in (value if parameter.multiple else [value])]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in session.flags.items() if name not in (*_THERE, *_HERE)]
    options += ["--debug"] if session.debug else []
    for word in (*options, *arguments):
        if not word.isprintable():
            raise UserError(f"{word!r} cannot be sent to a cluster", cause="it holds characters that are not printable")
    return [*verb, *options], arguments


def _names(ctx: click.Context) -> list[str]:
    """The command's name after those of its groups; the program's own may be several words, as in ``python -m sparsefleet.cli``."""
    return [*_names(ctx.parent), str(ctx.info_name)] if ctx.parent is not None else []


def entrypoint(options: Sequence[str], arguments: Sequence[str], *, has_parcel: bool, flag: str) -> str:
    """The line that a shell on the head node runs; nothing in the verb's words means anything to that shell.

    Args:
        has_parcel: then a grid is named as in the parcel, by the file's name.
        flag: what our user has to add to a command to get there again.
    """
    start = f"exec python -m sparsefleet.cli.relayed --flag {shlex.quote(flag)}"
    if not has_parcel:
        return f"cd && {start} -- {shlex.join([*options, '--', *arguments])}"
    named = [Path(word).name if _is_sent(word) else word for word in arguments]
    return f'parcel="$PWD" && cd && {start} --parcel "$parcel" -- {shlex.join([*options, "--", *named])}'


def _is_sent(grid: str) -> bool:
    from sparsefleet.grid.load import shipped_grids

    return grid not in shipped_grids()


def _parcel(session: Session, ctx: click.Context) -> bytes | None:
    """What the verb needs of this machine: a grid with its plugins, after a check; for ``doctor`` what it has itself."""
    grid = ctx.params.get("grid")
    if grid is None and ctx.info_name != "doctor":
        return None
    from sparsefleet.fleet.remote_parcel import make_parcel
    from sparsefleet.registry import catalog

    plugins = catalog()
    if grid is None:
        return make_parcel(plugins, [f"{e.family}/{e.name}" for e in plugins.entries if e.state == "ok"], None)
    from sparsefleet.cli.grids import loaded_grid
    from sparsefleet.grid.expand import expand
    from sparsefleet.grid.plan import refuse_too_many
    from sparsefleet.trial.identity import plugins_of

    loaded = loaded_grid(grid, ctx.params.get("name"), ctx.params.get("set_", ()), plugins)
    refuse_too_many(loaded, session.get("max_trials"))
    used = {f"{family}/{ref.name}" for point in expand(loaded, plugins) for family, ref in plugins_of(point.spec)}
    return make_parcel(plugins, used, Path(grid) if _is_sent(grid) else None)


def _followed(server: JobServer, line: str, parcel: str | None) -> int:
    """Starts the job and prints what it says until it ends; its exit code. However that ends, the job does not stay behind."""
    job, reader = f"{_PREFIX}{uuid4().hex[:12]}", Reader()
    with _terminated_as_interrupted():
        server.submit(job, line, parcel)
        try:
            state = _follow(server, job, reader)
        except BaseException:
            _end(server, job)
            raise
        _tidy(server, job)
    if reader.exit_code is None:
        raise _ended_alone(server, state, reader)
    return reader.exit_code


def _follow(server: JobServer, job: str, reader: Reader) -> str:
    """Prints until the job has ended; its state. Asks often at first, because most verbs are short; then is told."""
    began, seen, asked_in_vain = time.monotonic(), 0, None
    while True:
        try:
            state = server.state(job)
            if time.monotonic() - began < _POLL_LIMIT_S and seen < _POLL_LIMIT_CHARACTERS:
                text = server.log(job)
                _print(reader, text[seen:])
                seen = len(text)
            else:
                reader.restart()
                asyncio.run(server.tail(job, lambda piece: _print(reader, piece)))
                state = server.state(job)
            if state in ENDED and reader.exit_code is None:  # a connection that broke may have cost the last words
                reader.restart()
                _print(reader, server.log(job))
            asked_in_vain = None
        except BackendUnreachable as error:
            if asked_in_vain is None:
                say(f"{error.what}; asking again for {_AGAIN_LIMIT_S / 60:.0f} min. What runs on the cluster goes on")
            asked_in_vain = asked_in_vain or time.monotonic()
            if time.monotonic() - asked_in_vain > _AGAIN_LIMIT_S:
                raise
            time.sleep(_AGAIN_EVERY_S)
            continue
        if state in ENDED or reader.exit_code is not None:
            return state
        time.sleep(_POLL_S)


def _print(reader: Reader, text: str) -> None:
    for stream, piece in reader.take(text):
        click.echo(plain(piece, lines=True), nl=False, err=stream == "e")


def _ended_alone(server: JobServer, state: str, reader: Reader) -> Exception:
    """Why there was no exit code."""
    said = [line for line in reader.noise if line.strip() and "job_manager.py" not in line and not line.startswith("Running entrypoint")]
    cause = said[-1][:300] if said else f"its job is {state}"
    if any("No module named" in line or "not found" in line for line in said):
        return PluginError(
            f"the head node of {server.url} has no sparsefleet",
            cause=cause,
            fix="install the same version there, in the environment from which `ray start` is called",
        )
    return BackendUnreachable(f"the verb ended on {server.url} without a word", cause=cause, fix="sparsefleet doctor --cluster")


def _end(server: JobServer, job: str) -> None:
    """Ends the relayed verb, which nobody reads any more; a driver that it started is a job of its own and goes on."""
    with suppress(BackendUnreachable, KeyboardInterrupt):
        server.stop(job)


def _tidy(server: JobServer, job: str) -> None:
    """Takes relayed verbs of before off the cluster's list, our own not yet: Ray would write a job down again that has just ended."""
    with suppress(BackendUnreachable):
        jobs = server.jobs(_PREFIX)
        until = jobs[job]["start_time"] - _TIDY_AFTER_MS
        for other, told in jobs.items():
            if told["status"] in ENDED and told.get("end_time") and told["end_time"] < until:
                server.delete(other)


def _detached(server: JobServer, ctx: click.Context) -> int:
    """Says what goes on without us; 130."""
    drivers: list[str] = []
    if ctx.info_name in ("grid", "resume", "watch"):
        with suppress(BackendUnreachable):
            drivers = [
                job for job, told in server.jobs("sparsefleet-").items() if told["status"] not in ENDED and not job.startswith(_PREFIX)
            ]
    if drivers:
        sweeps = [job.removeprefix("sparsefleet-").rpartition("-")[0] for job in drivers]
        say(f"stopped following; {', '.join(sweeps)} {'goes' if len(sweeps) == 1 else 'go'} on without this machine")
        next_command(f"watch {sweeps[0]} --address {server.url}" if len(sweeps) == 1 else f"status --address {server.url}")
    else:
        say("interrupted")
    sys.stdout.flush()
    return 130


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A closed terminal and a SIGTERM end the relay as Ctrl-C does, so that nothing stays behind on the cluster."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
