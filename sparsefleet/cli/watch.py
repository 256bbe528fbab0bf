"""``watch``."""

from __future__ import annotations

import signal
import threading

import click

from sparsefleet.cli.labels import trial_label
from sparsefleet.cli.progress import Snapshot, View, screen
from sparsefleet.cli.session import Session, leave, verb
from sparsefleet.cli.sweeps import chosen, exit_code, figures, following, reading, sweep_argument
from sparsefleet.cli.talk import next_command, say


@verb("watch", "watch", "watch quickstart-1a2b", short="Follow a sweep until it ends.")
@sweep_argument
@click.option("--every", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS", help="How often to look.")
def watch(session: Session, sweep: str | None, every: float) -> None:
    """Follow a sweep until it ends; Ctrl-C stops watching, the sweep goes on.

    SWEEP may be a prefix of its id; without it the newest sweep is watched. Ends with 5 if trials failed.
    """
    from sparsefleet.ledger.rows import ACTIVE, FAILED, LIVE_SWEEP

    ledger = reading(session)
    row = chosen(ledger, sweep)
    asked = {"with_record": False, "with_attempts": False}
    snapshot, view, shown = Snapshot(session.made_home(), row.sweep), View(row.sweep), screen()
    told: set[str] = set()
    interrupted = threading.Event()
    # Not as an exception: one that is raised inside the display's lock would leave its refreshing thread waiting for it, and us for the thread.
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        while not interrupted.is_set():
            row = ledger.sweep(row.sweep)
            live = snapshot.load() if row.state in LIVE_SWEEP else {}
            view.state = row.state
            view.take_json(live)
            view.count(figures(row), row.counts.get("cached", 0))
            steps = live.get("running", {})
            view.running = {
                trial.key: {"what": trial_label(trial.spec), **steps.get(trial.key, {})}
                for trial in (ledger.trials(row.sweep, states=ACTIVE, **asked) if row.state in LIVE_SWEEP else ())
                if trial.state in ACTIVE
            }
            if view.failed + view.diverged > len(told):  # else there is nothing new to be read
                for trial in ledger.trials(row.sweep, states=(*FAILED, "DIVERGED"), **asked):
                    if trial.key not in told:
                        told.add(trial.key)
                        reason = (trial.reason or "").strip().splitlines()
                        what = f"{trial.spec_id} {trial_label(trial.spec)}: {trial.state}"
                        view.failures.append(what + (f": {reason[0]}" if reason else ""))
            ended = row.state not in LIVE_SWEEP
            shown.show(view, urgent=ended)
            if ended:
                break
            interrupted.wait(every)
    finally:
        shown.close()
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set() and row.state in LIVE_SWEEP:
        say(f"stopped watching; {row.sweep} goes on")
        next_command(f"watch {row.sweep}")
        leave(130)
    code = exit_code(row)
    say(f"{row.sweep} is {row.state}: {view.headline()}")
    next_command(following(row))
    leave(code)
