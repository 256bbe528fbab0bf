"""Drives a sweep from this process or in the background, and says how it ended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.compare import Source, show_table, table_rows
from sparsefleet.cli.events import Feed
from sparsefleet.cli.session import Session
from sparsefleet.cli.settings import said_again
from sparsefleet.cli.sweeps import exit_code, figures, is_measured, status_json
from sparsefleet.cli.talk import emit, log_folder, next_command, say
from sparsefleet.cli.trustworthy import require_trustworthy
from sparsefleet.errors import BackendUnreachable, PluginError, SparsefleetError, SweepLocked, UserError
from sparsefleet.spawn import module_command

if TYPE_CHECKING:
    from sparsefleet.fleet.events import DriverSettings
    from sparsefleet.ledger.rows import SweepRow

RELAYED = "SPARSEFLEET_RELAYED"
"""Is set where a verb runs on a cluster's head for somebody elsewhere: what it starts must outlive it, so drivers are jobs of their own."""
Row = dict[str, Any]
_BACKGROUND_LIMIT_S = 60.0
_ENDED = (0, 5, 6)
"""Codes of a driver that has brought its sweep to the end."""
_ERRORS = {kind.exit_code: kind for kind in (SparsefleetError, UserError, PluginError)}


@dataclass(frozen=True)
class Drive:
    """How a sweep is to be driven."""

    sweep: str
    detach: bool = False
    as_json: bool = False
    only_failed: bool = False
    remeasure: bool = False
    require: bool = False


def drive(session: Session, wanted: Drive) -> int:
    """Runs the sweep to its end, or in the background; the exit code."""
    from sparsefleet.ledger import is_held, read_ledger

    home = session.made_home()
    row = read_ledger(home).sweep(wanted.sweep)
    if has_ended(row) and not (wanted.only_failed or wanted.remeasure) and not _has_more(home, row.sweep):
        say(f"already complete: {row.counts.get('total', 0)} cached, 0 to run")
        _send_what_waits(session, home)
        return _finish(session, row, wanted)
    told = figures(row)
    again = told["failed"] if wanted.only_failed else 0
    say(f"{row.sweep}: {told['total']:,} trials: {told['done'] - again:,} cached, {told['total'] - told['done'] + again:,} to run")
    relayed = bool(os.environ.get(RELAYED))
    if wanted.detach or relayed:
        if is_held(home, row.sweep):
            raise SweepLocked(f"sweep {row.sweep!r} is being driven already", fix=f"sparsefleet watch {row.sweep}")
        if not relayed:
            return _background(session, row, wanted)
        _as_job(session, row, wanted)
        if wanted.detach:
            return 0
        _watch(row.sweep)
        return _finish(session, read_ledger(home).sweep(row.sweep), wanted)
    shown: list[Row] = []
    return _finish(session, foreground(session, row, wanted, lambda ended: shown.extend(_show(session, ended, wanted))), wanted, shown)


def _has_more(home: Path, sweep: str) -> bool:
    """True if a committed trial or timing is not what it was, which the driver sets aside, or if a timing is lacking through no fault of its own."""
    from sparsefleet.fleet.untimed import lacks_timings
    from sparsefleet.home import artifact_root
    from sparsefleet.ledger import read_ledger
    from sparsefleet.ledger.spool import store_of

    with read_ledger(home) as ledger:
        if ledger.damaged(sweep, store_of(artifact_root(), home)) or ledger.damaged_timings(sweep):
            return True
        return lacks_timings(ledger, sweep)


def _send_what_waits(session: Session, home: Path) -> None:
    """Runs and files of what has ended may still wait for a MLflow or a store that was away: a process in the background tries again."""
    from sparsefleet.ledger import read_ledger
    from sparsefleet.ledger.spool import FOLDER, pending

    with read_ledger(home) as ledger:
        n_items = ledger.outbox_size(without="pictures")
    n_files = len(pending(home / FOLDER))
    if not (n_items or n_files):
        return
    from sparsefleet.fleet.uploader import Uploader

    uploader = Uploader(home, session.get("mlflow_uri"), lambda event: say(event.data["text"]))
    uploader.start()
    waiting = [f"{n_items} items wait for MLflow"] * bool(n_items) + [f"{n_files} files wait for the artifact store"] * bool(n_files)
    if uploader.pids():
        say(f"{' and '.join(waiting)}; they are sent in the background, log {home / 'uploader.log'}")


def has_ended(row: SweepRow) -> bool:
    """True if nothing is left to do but, perhaps, to upload: the trials and the timings have ended."""
    told = figures(row)
    return row.state in ("DONE", "FAILED") and not told["waiting"] and not told["running"]


def foreground(session: Session, row: SweepRow, wanted: Drive, show: Callable[[SweepRow], None] = lambda _: None) -> SweepRow:
    """Runs what is left of the sweep here; the sweep as it then stands.

    Args:
        show: tells what it came to, before anything waits for MLflow.
    """
    from sparsefleet.ledger import read_ledger

    if session.cluster_url:
        raise UserError(
            f"this command drives the sweep itself, and {session.cluster_url} is an address to be asked from elsewhere",
            fix="--address local, or HOST:PORT on a node of the cluster; or submit grid, which the cluster drives",
        )
    home = session.made_home()
    try:
        from sparsefleet.fleet.driver import submit
    except ModuleNotFoundError as error:
        raise BackendUnreachable(f"{error.name} is not installed", fix="pip install sparsefleet") from error

    def before_upload() -> None:
        try:
            _publish(session, row.sweep)
        except Exception as error:  # noqa: BLE001  the sweep's result does not depend on MLflow's note
            say(f"the table is not in MLflow: {type(error).__name__}: {error}")
        show(read_ledger(home).sweep(row.sweep))

    feed = Feed(home, row, read_ledger(home), before_upload)
    try:
        return submit(home, row.sweep, _settings(session, row, wanted), feed.take)
    finally:
        feed.close()


def _publish(session: Session, sweep: str) -> None:
    """Hands the table to the uploader, as the sweep's note in MLflow. This process holds the sweep's lock."""
    from sparsefleet.ledger import open_ledger
    from sparsefleet.report.breakeven import sentences
    from sparsefleet.report.claims import claim
    from sparsefleet.report.table import render_markdown

    rows, _ = table_rows(session, sweep, Source())
    markdown = f"# {sweep}\n\n{render_markdown(rows)}- {claim(rows)}\n" + "".join(f"- {line}\n" for line in sentences(rows))
    with open_ledger(session.home) as ledger:
        ledger.enqueue("table", sweep, None, {"markdown": markdown})
        if session.get("pictures") != "off":
            ledger.enqueue("pictures", sweep, None, {})


def _settings(session: Session, row: SweepRow, wanted: Drive) -> DriverSettings:
    from sparsefleet.fleet.events import DriverSettings

    return DriverSettings(
        address=session.get("address"),
        max_parallel=session.get("max_parallel") or row.settings.get("max_parallel"),
        cpus=None,
        measure=row.settings.get("measure", {}),
        mlflow_uri=session.get("mlflow_uri"),
        data_root=Path(session.get("data")),
        only_failed=wanted.only_failed,
        remeasure=wanted.remeasure,
    )


def _background(session: Session, row: SweepRow, wanted: Drive) -> int:
    """Starts a driver in a session of its own, whose output goes to a log under the home; returns once it holds the sweep, or has ended it.

    Raises:
        SweepLocked: another one was quicker.
        UserError, PluginError, BackendUnreachable: it ended at once, with the code of that error or another one.
    """
    from sparsefleet.ledger import read_ledger

    log = log_folder(session.made_home()) / f"{row.sweep}.log"
    command = module_command("sparsefleet.cli", "resume", row.sweep, *_flags(wanted))
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    size = os.fstat(fd).st_size
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
            env={**os.environ, **said_again(session.settings)},
        )
    finally:
        os.close(fd)
    end = time.monotonic() + _BACKGROUND_LIMIT_S
    while time.monotonic() < end and child.poll() is None and not _is_driven(session, row.sweep, child.pid):
        time.sleep(0.05)
    code = child.poll() or 0
    if code == SweepLocked.exit_code:
        raise SweepLocked(f"sweep {row.sweep!r} is being driven already", fix=f"sparsefleet watch {row.sweep}")
    if code not in _ENDED:
        said = log.read_bytes()[size:].decode(errors="replace").strip().splitlines() or ["it said nothing"]
        error = next((line for line in reversed(said) if line.startswith("error:")), said[-1])
        kind = _ERRORS.get(code, BackendUnreachable)
        raise kind(f"the driver ended at once with code {code}", cause=error.removeprefix("error:").strip(), fix=f"its log is {log}")
    if wanted.as_json:
        emit({**status_json(read_ledger(session.home).sweep(row.sweep), session.home), "driver_pid": child.pid, "log": str(log)})
    if child.returncode is None:
        say(f"{row.sweep} runs in the background (process {child.pid}), log {log}")
        next_command(f"watch {row.sweep}")
    else:
        say(f"{row.sweep} has ended already, log {log}")
        next_command(f"compare {row.sweep}")
    return code


def _is_driven(session: Session, sweep: str, pid: int) -> bool:
    """True if that process drives the sweep: another driver's lock is none of ours."""
    from sparsefleet.ledger import read_ledger
    from sparsefleet.ledger.lock import holder
    from sparsefleet.ledger.rows import LIVE_SWEEP

    if holder(session.home, sweep) != pid:
        return False
    with read_ledger(session.home) as ledger:
        return ledger.sweep(sweep).state in LIVE_SWEEP


def _as_job(session: Session, row: SweepRow, wanted: Drive) -> None:
    """Starts a driver as a Ray Job, whose output goes to the same log as that of a driver in the background."""
    from sparsefleet.fleet.remote_driver import start_driver

    log = log_folder(session.made_home()) / f"{row.sweep}.log"
    limit = [f"--max-parallel={session.flags['max_parallel']}"] if "max_parallel" in session.flags else []
    command = module_command("sparsefleet.cli", "resume", f"--home={session.home}", *_flags(wanted), *limit, "--", row.sweep)
    job = start_driver(session.get("address"), session.home, row.sweep, command, log)
    if wanted.as_json and wanted.detach:
        emit({**status_json(row, session.home), "job": job, "log": str(log)})
    say(f"{row.sweep} runs on the cluster as job {job}, log {log}; it goes on whatever becomes of this machine")
    if wanted.detach:
        next_command(f"watch {row.sweep}")


def _watch(sweep: str) -> None:
    """Shows how the sweep goes until it ends."""
    from sparsefleet.cli.watch import watch

    try:
        click.get_current_context().invoke(watch, sweep=sweep)
    except click.exceptions.Exit:
        return


def _show(session: Session, row: SweepRow, wanted: Drive) -> list[Row]:
    """Shows the table, and where everything lies; the table's rows."""
    rows, _ = table_rows(session, row.sweep, Source())
    if wanted.as_json:
        emit({**status_json(row, session.home), "rows": rows})
    elif figures(row)["done"]:
        show_table(rows)
        for line in _places(session, row, rows):
            say(line)
    return rows


def _finish(session: Session, row: SweepRow, wanted: Drive, shown: Sequence[Row] = ()) -> int:
    """The exit code, 5 if trials failed, and what to do next; the table first, unless it was ``shown``.

    Raises:
        NotTrustworthy: it was asked for, and a timing is not; the trials themselves ended well.
    """
    rows = shown or _show(session, row, wanted)
    code = exit_code(row)
    told = figures(row)
    if code == 5:
        say(f"{told['failed']} of {told['total']} trials failed: sparsefleet status {row.sweep} --trials")
        next_command(f"resume {row.sweep} --failed")
    elif code == 130:
        say(f"{row.sweep} is {row.state}: {told['done']} of {told['total']} trials have ended")
        next_command(f"resume {row.sweep}")
    else:
        if wanted.require:
            require_trustworthy(rows, row.sweep, measured=is_measured(row))
        next_command("ui")
    return code


def _places(session: Session, row: SweepRow, rows: Sequence[dict[str, Any]]) -> list[str]:
    from sparsefleet.home import artifact_root

    return [
        f"runs: {session.get('mlflow_uri')}, opened by: sparsefleet ui",
        f"table again: sparsefleet compare {row.sweep} (--csv, --json, --by density)",
        f"ledger: {session.home / 'ledger.db'}",
        f"models and masks: {artifact_root()}",
        f"logs: {session.home / 'logs'}",
    ]


def _flags(wanted: Drive) -> list[str]:
    flags = {"--failed": wanted.only_failed, "--remeasure": wanted.remeasure, "--require-trustworthy": wanted.require}
    return [flag for flag, given in flags.items() if given]
