"""``pictures``: a trial's or a sweep's pictures, from what it left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsefleet.cli.session import Session, json_option, verb
from sparsefleet.cli.talk import data, emit, next_command, say

if TYPE_CHECKING:
    from sparsefleet.ledger.ledger import Ledger
    from sparsefleet.ledger.rows import SweepRow, TrialRow

_KINDS = ("masks", "weights", "histograms", "convolution", "evolution", "curves", "density", "accuracy", "patterns")
_ENDED = ("SUCCEEDED", "DIVERGED")


@verb(
    "pictures",
    "pictures quickstart-1a2b",
    "pictures quickstart-1a2b --trial 8c2f --kind masks --kind evolution",
    "pictures .sparsefleet/runs/8c2f19d0a7e3 --out pictures",
    short="Masks, weights, curves and accuracy as PNG.",
)
@click.argument("target", required=False, metavar="[SWEEP | TRIAL | FOLDER]")
@click.option("--trial", metavar="ID", help="Only this trial of the sweep.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("pictures"),
    show_default=True,
    metavar="DIR",
    help="Folder to write into; a trial's pictures go into a folder of its id.",
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS), help="Only these kinds; repeatable.")
@click.option("--layer", metavar="NAME", help="The layer whose evolution is drawn; default: the first that was kept at every step.")
@json_option
def pictures(
    session: Session, target: str | None, trial: str | None, out: Path, kinds: Sequence[str], layer: str | None, as_json: bool
) -> None:
    """Draw what a finished trial or a whole sweep left: masks, weights, topology over the steps, curves, accuracy against sparsity.

    A sweep gives the pictures of the whole, one trial per row of its table side by side, and with --kind also those of single trials, one per row; a
    trial, or a folder with a trial's files, gives its own. Without a name the newest sweep is drawn. What each picture shows: docs/pictures.md.
    """
    chosen = tuple(kinds)
    folder = Path(target) if target and Path(target).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="sparsefleet-pictures-") as scratch:
        drawn = _of_folder(folder, chosen, layer) if folder else _of_ledger(session, target, trial, chosen, layer, Path(scratch))
        written = []
        for name, png in drawn:
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
            written.append(str(path))
            say(str(path))
    if as_json:
        emit({"pictures": written})
        return
    counted = "1 picture" if len(written) == 1 else f"{len(written)} pictures"
    data(f"{counted} in {out}" if written else "nothing to draw: there is none of these kinds")
    next_command(f"compare {target}" if target and not folder and not trial else "compare")


def _of_folder(folder: Path, kinds: tuple[str, ...], layer: str | None) -> Iterator[tuple[str, bytes]]:
    from sparsefleet.cli.labels import trial_label
    from sparsefleet.errors import IntegrityError, UserError
    from sparsefleet.report.pictures.draw import trial_pictures
    from sparsefleet.report.pictures.trial import read_trial

    trial = read_trial(folder)
    trial.label = trial_label(trial.spec)
    try:
        yield from ((f"{trial.spec_id}/{name}", png) for name, png in trial_pictures(trial, kinds or _KINDS, layer))
    except IntegrityError as error:  # no file of ours: what was given is bad
        raise UserError(error.what, cause=error.cause, fix="take the files of one trial as it left them") from error


def _of_ledger(
    session: Session, target: str | None, trial: str | None, kinds: tuple[str, ...], layer: str | None, scratch: Path
) -> Iterator[tuple[str, bytes]]:
    from sparsefleet.cli.sweeps import chosen, reading
    from sparsefleet.errors import UserError

    ledger = reading(session)
    try:
        sweep = chosen(ledger, target)
    except UserError:
        if trial is not None or target is None:
            raise
        return _of_trial(ledger.trial(target), kinds, layer, scratch)
    if trial is None:
        return _of_sweep(ledger, sweep, kinds, layer, scratch)
    row = next((row for row in ledger.trials(sweep.sweep) if row.spec_id.startswith(trial)), None)
    if row is None:
        raise UserError(f"sweep {sweep.sweep} has no trial {trial!r}", fix=f"sparsefleet compare {sweep.sweep} --json names them")
    return _of_trial(row, kinds, layer, scratch)


def _of_trial(row: TrialRow, kinds: tuple[str, ...], layer: str | None, scratch: Path) -> Iterator[tuple[str, bytes]]:
    from sparsefleet.cli.labels import trial_label
    from sparsefleet.errors import UserError
    from sparsefleet.home import artifact_root, home
    from sparsefleet.ledger.spool import store_of
    from sparsefleet.report.pictures.draw import trial_pictures
    from sparsefleet.report.pictures.fetch import fetched

    if row.state not in _ENDED:
        raise UserError(f"{row.spec_id} is {row.state}", fix="only a trial that ended left something to draw")
    trial = fetched(row, store_of(artifact_root(), home()), scratch, trial_label(row.spec), kinds or _KINDS)
    return ((f"{row.spec_id}/{name}", png) for name, png in trial_pictures(trial, kinds or _KINDS, layer))


def _of_sweep(ledger: Ledger, sweep: SweepRow, kinds: tuple[str, ...], layer: str | None, scratch: Path) -> Iterator[tuple[str, bytes]]:
    from sparsefleet.home import artifact_root, home
    from sparsefleet.ledger.spool import store_of
    from sparsefleet.report.compare import rows
    from sparsefleet.report.pictures.draw import OF_SWEEP
    from sparsefleet.report.pictures.sweep import pictures_of_sweep

    found = pictures_of_sweep(ledger, sweep.sweep, store_of(artifact_root(), home()), scratch, kinds or OF_SWEEP)
    yield from ((f"{sweep.sweep}/{name}", png) for name, png in found)
    single = tuple(kind for kind in kinds if kind not in OF_SWEEP)
    if not single:
        return
    trials = {trial.spec_id: trial for trial in ledger.trials(sweep.sweep)}
    for row in rows(list(trials.values())):
        ended = [spec_id for spec_id in row["trial_ids"] if trials[spec_id].state in _ENDED]
        if ended:
            folder = scratch / "single" / ended[0]
            folder.mkdir(parents=True)
            yield from _of_trial(trials[ended[0]], single, layer, folder)
