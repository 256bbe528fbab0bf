"""Runs a sweep to its end: trials, then timings, then what waits for MLflow. The only writer of the sweep's rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsefleet.crash_points import refuse_typos
from sparsefleet.errors import BackendUnreachable, IntegrityError, NoSpace
from sparsefleet.fleet.events import DriverSettings, Event
from sparsefleet.fleet.interrupts import Interrupts, cancel_path
from sparsefleet.fleet.untimed import lacks_timings, untimed
from sparsefleet.fleet.uploader import Uploader
from sparsefleet.home import artifact_root, keep_private
from sparsefleet.ledger import Ledger, SweepLock, SweepRow, is_held, open_ledger
from sparsefleet.ledger.rows import FAILED, TERMINAL
from sparsefleet.ledger.spool import flush, pending, store_of
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.space import telling
from sparsefleet.trial import files

__all__ = ["DriverSettings", "Event", "cancel", "submit"]

_ENDED = ("DONE", "FAILED")
_MOST_REPAIRS = 5


def submit(home: Path, sweep: str, settings: DriverSettings, on_event: Callable[[Event], None]) -> SweepRow:
    """Run what is left of a sweep whose rows are in the ledger; the sweep as it then stands.

    Its state afterwards: DONE; FAILED if a trial failed, or if the first ones all failed alike and the rest waits; INTERRUPTED after Ctrl-C;
    CANCELLED. All but the first can be taken up again by calling this once more. A sweep with nothing left imports neither ray nor torch.
    After a Ctrl-C this process ends within 10 s, after a second one within 2 s, whatever Ray is doing; see ``Interrupts``.

    Raises:
        KeyboardInterrupt: Ctrl-C came when everything had run and only the upload was left; that goes on by itself.
        SweepLocked: another process drives it.
        PluginError: a node runs other code than the sweep was submitted with; nothing was queued.
        BackendUnreachable: Ray cannot be reached, or loses one supervisor after the other.
        NoSpace: a disk is full; what is committed stays, and what ran runs again.
        IntegrityError: trained networks are damaged again as soon as they are stored.
    """
    keep_private()
    refuse_typos()
    with telling(home), open_ledger(home) as ledger:
        sweep = ledger.sweep(sweep).sweep
        uploader = Uploader(home, settings.mlflow_uri, on_event)
        with SweepLock(home, sweep), Interrupts(home, sweep, uploader.pids) as interrupts:
            ledger.recover(sweep)
            if settings.only_failed:
                ledger.retry_failed(sweep)
            store = store_of(artifact_root(), home)
            _set_aside(ledger, ledger.damaged(sweep, store), on_event)
            _set_timings_aside(ledger, sweep, on_event)
            _empty_spool(store, on_event)
            row = ledger.sweep(sweep)
            if row.state in _ENDED and _n_open(row) == 0 and not settings.remeasure and not lacks_timings(ledger, sweep):
                return row
            ledger.set_sweep_state(sweep, "RUNNING")
            state = "INTERRUPTED"

            def tell(event: Event) -> None:
                if event.kind == "trial":  # not before: importing MLflow takes the cores for seconds from the first trials' start
                    uploader.start()
                on_event(event)

            try:
                on_event(_sweep_event(ledger, sweep))
                if _n_open(row) or row.counts.get("CANCELLED", 0) or untimed(ledger, sweep, settings.measure, again=settings.remeasure):
                    state = _run(ledger, sweep, settings, interrupts, tell, uploader)
                else:  # other sweeps did all of it: nothing to start Ray for
                    state = "FAILED" if any(row.counts.get(end, 0) for end in FAILED) else "DONE"
            finally:
                _empty_spool(store, on_event, last=True)
                _note_state(ledger, sweep, state, on_event)
                if state in _ENDED:
                    uploader.start()
                uploader.finish(ledger, interrupts, **({} if state in _ENDED else {"limit_s": 2.0}))
            on_event(_sweep_event(ledger, sweep))
            if interrupts.n_signals and state in _ENDED:
                raise KeyboardInterrupt
            return ledger.sweep(sweep)


def cancel(home: Path, sweep: str) -> bool:
    """Stop a sweep; what is committed stays, and ``resume`` takes it up again. True if a live driver has to do it, some moments later."""
    with open_ledger(home) as ledger:
        row = ledger.sweep(sweep)
        if is_held(home, row.sweep):
            cancel_path(home, row.sweep).touch(mode=0o600)
            return True
        if row.state not in _ENDED or _n_open(row):
            ledger.set_sweep_state(row.sweep, "CANCELLED")
    return False


def _run(
    ledger: Ledger, sweep: str, settings: DriverSettings, interrupts: Interrupts, emit: Callable[[Event], None], uploader: Uploader
) -> str:
    """Trials, then timings; the sweep's state."""
    from sparsefleet.fleet.bundle import unpacked
    from sparsefleet.fleet.cluster import Cluster  # imports ray: not for a sweep with nothing left
    from sparsefleet.fleet.logs import home_id
    from sparsefleet.fleet.measuring import MeasurePhase
    from sparsefleet.fleet.phase import TrialPhase
    from sparsefleet.fleet.pool import Pool
    from sparsefleet.fleet.server import NodeServer
    from sparsefleet.fleet.supervisor import Setup

    measures = settings.measure.get("level", "none") != "none"
    bundle = ledger.sweep(sweep).settings.get("bundle")
    folder = unpacked(bundle, ArtifactStore(artifact_root()), ledger.home) if bundle else None
    node_server = NodeServer(folder)  # imports torch while Ray starts
    try:
        with Cluster(settings.address, settings.cpus, sweep) as cluster:
            interrupts.take_signals()
            setup = Setup(str(ledger.home), artifact_root(), cluster.own_node, node_server.path, bundle, home_id(ledger.home))
            pool = Pool(cluster, setup, settings.max_parallel, emit)
            try:
                for _ in range(_MOST_REPAIRS):
                    trials = TrialPhase(ledger, sweep, pool, settings, interrupts, emit)
                    trials.run()
                    if interrupts.stopping or trials.tripped:
                        break
                    damaged = _broken_networks(ledger, sweep, store_of(artifact_root(), ledger.home)) if measures else {}
                    if not damaged:
                        ledger.set_sweep_state(sweep, "MEASURING")
                        emit(_sweep_event(ledger, sweep))
                        uploader.start()
                        if measures:
                            uploader.settle(ledger, lambda: interrupts.stopping)
                        timings = MeasurePhase(ledger, sweep, pool, settings, interrupts, emit)
                        timings.run()
                        damaged = timings.damaged
                    if not damaged:
                        break
                    _set_aside(ledger, damaged, emit)
                    ledger.set_sweep_state(sweep, "RUNNING")
                else:
                    raise IntegrityError(
                        f"networks of {sweep} are not what was stored, {_MOST_REPAIRS} times one after the other",
                        cause="; ".join(damaged.values()),
                        fix=f"look after the disk of the artifact store, then: sparsefleet resume {sweep}",
                    )
                if interrupts.cancelled:
                    return "CANCELLED"
                if interrupts.n_signals:
                    return "INTERRUPTED"
                return "FAILED" if trials.tripped or trials.queue.n_failed else "DONE"
            finally:
                pool.close()
    finally:
        node_server.close()


def _set_aside(ledger: Ledger, damaged: dict[str, str], emit: Callable[[Event], None]) -> None:
    """Trials that were committed and are not what they were go back into the queue."""
    for key, reason in damaged.items():
        path = ledger.set_aside(key, reason)
        emit(Event("note", {"text": f"{reason}: it runs again; its record was moved to {path}"}))


def _set_timings_aside(ledger: Ledger, sweep: str, emit: Callable[[Event], None]) -> None:
    """Timings that are not what was measured are taken away: the measure phase finds them missing."""
    for config_key, reason in ledger.damaged_timings(sweep).items():
        path = ledger.set_timing_aside(sweep, config_key)
        emit(Event("note", {"text": f"{reason}: it is measured again; what is left of it was moved to {path}"}))


def _broken_networks(ledger: Ledger, sweep: str, store: ArtifactStore) -> dict[str, str]:
    """Trained networks that are about to be timed and are not as they were stored, by trial key."""
    found = {}
    for row in ledger.trials(sweep):
        for ref in (row.record or {}).get("artifacts", []):
            if ref["name"] in (files.MODEL, files.MASKS, files.MANIFEST) and not store.is_whole(ref["sha256"]):
                found[row.key] = f"{ref['name']} of {row.spec_id} does not match its digest"
    return found


def _empty_spool(store: ArtifactStore, emit: Callable[[Event], None], *, last: bool = False) -> None:
    """Hands over what waits for the store; a store that is away is only told of."""
    try:
        flush(store)
    except BackendUnreachable as error:
        n = len(pending(store.spool)) if store.spool else 0
        if last and n:
            text = f"{n} files wait in {store.spool} for the artifact store: {error.what}; they are sent as soon as it answers"
            emit(Event("note", {"text": text}))


def _note_state(ledger: Ledger, sweep: str, state: str, emit: Callable[[Event], None]) -> None:
    """Writes how the sweep ended. On a full disk it cannot, and the sweep reads as interrupted, which it is."""
    try:
        ledger.set_sweep_state(sweep, state)
    except NoSpace as error:
        emit(Event("note", {"text": error.what}))


def _n_open(row: SweepRow) -> int:
    return sum(n for state, n in row.counts.items() if state not in (*TERMINAL, "total", "cached"))


def _sweep_event(ledger: Ledger, sweep: str) -> Event:
    row = ledger.sweep(sweep)
    failed = sum(row.counts.get(state, 0) for state in FAILED)
    return Event("sweep", {"sweep": sweep, "state": row.state, "counts": row.counts, "failed": failed, "eta_s": None})
