"""``measure``: one timing by hand, and ``measure recheck``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.recheck import recheck_sweep
from sparsefleet.cli.session import Session, json_option, plugin_option, verb
from sparsefleet.cli.talk import data, emit, next_command, say
from sparsefleet.cli.trustworthy import require_option

if TYPE_CHECKING:
    from sparsefleet.cli.timed import Timed
    from sparsefleet.measure.passes import MeasureResult

_RECHECK = "recheck"


@verb(
    "measure",
    "measure recheck quickstart-1a2b",
    "measure 8c2f --op forward --batch 1",
    "measure .sparsefleet/runs/8c2f19d0a7e3 --level publish --samples raw.json",
    short="Time one trained net, or recheck a sweep.",
)
@click.argument("words", nargs=-1, required=True, metavar="TRIAL | FOLDER | recheck SWEEP")
@click.option("--op", type=click.Choice(["step", "forward"]), help="What to time; default: a whole training step.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Batch size; default: the training's own.")
@click.option("--level", type=click.Choice(["screen", "publish"]), help="One process or three, with stricter gates; default: screen.")
@click.option("--samples", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the raw samples to this file.")
@require_option
@plugin_option
@json_option
def measure(session: Session, words: Sequence[str], require: bool, as_json: bool, **options: Any) -> None:
    """Time one trained network here against its dense baselines, without Ray; or compute a sweep's timings again from their raw samples.

    TRIAL is the beginning of a trial's id or key in this home. FOLDER holds model.safetensors, spec.json, record.json and the mask artifact, as
    run leaves them and as they come from MLflow. Nothing is written to the ledger.

    recheck SWEEP computes every estimate and verdict of the sweep from the stored raw samples, in this process, and ends with 1 if a digit
    differs.
    """
    from sparsefleet.errors import UserError

    if words[0] == _RECHECK:
        given = [f"--{name}" for name, value in options.items() if value is not None] + (["--require-trustworthy"] if require else [])
        if given or len(words) != 2:
            raise UserError(
                f"recheck takes {given[0] if given else 'one sweep'}{' not' if given else ''}",
                fix="sparsefleet measure recheck SWEEP [--json]",
            )
        recheck_sweep(session, words[1], as_json)
        return
    if len(words) != 1:
        raise UserError(f"measure takes one trial or folder, got {len(words)}", fix="sparsefleet measure TRIAL, or measure recheck SWEEP")
    _measure(session, words[0], require, as_json, **options)


def _measure(
    session: Session,
    target: str,
    require: bool,
    as_json: bool,
    *,
    op: str | None,
    batch: int | None,
    level: str | None,
    samples: Path | None,
) -> None:
    import tempfile

    from sparsefleet.cli.figure import as_lines, circumstances
    from sparsefleet.cli.timed import timed
    from sparsefleet.measure.local import measure_here
    from sparsefleet.measure.passes import MeasureRequest

    session.made_home()
    with tempfile.TemporaryDirectory(prefix="sparsefleet-measure-") as folder:
        found = timed(session, target, Path(folder))
        job = found.job(op or "step", batch)
        say(f"{found.label}: {job.op}, batch {job.batch_size}, {level or 'screen'} level")
        result = measure_here(MeasureRequest(job=job, model=found.model, masks=found.masks, level=level or "screen"), say)
    timing = _timing(result)
    if samples and result.body:
        samples.write_text(result.body)
    if as_json:
        emit({"trial": found.spec_id, "sweep": found.sweep, "timing": timing, **circumstances(timing, found), "stored": False})
    else:
        data(as_lines(timing, found))
    _refuse(timing, require)
    if not as_json:
        _where_next(found)


def _timing(result: MeasureResult) -> dict[str, Any]:
    """The timing as JSON values.

    Raises:
        SparsefleetError: there is none; its class says whose fault it is.
    """
    from sparsefleet.errors import PluginError, TrialsFailed, UserError

    if result.timings:
        values: dict[str, Any] = result.timings[0].model_dump(mode="json")
        return values
    kind = {"INVALID": UserError, "INCORRECT": PluginError, "PLUGIN_ERROR": PluginError}.get(result.state, TrialsFailed)
    raise kind(f"there is no timing: {result.state}", cause=result.reason)


def _refuse(timing: dict[str, Any], require: bool) -> None:
    from sparsefleet.errors import NotTrustworthy
    from sparsefleet.report.trust import rival_trusted

    if require and not rival_trusted(timing):
        raise NotTrustworthy(
            "the timing is not trustworthy",
            cause="; ".join(timing["reasons"]),
            fix="sparsefleet doctor names what disturbs; then measure again",
        )


def _where_next(found: Timed) -> None:
    if found.sweep:
        say("nothing was written to the ledger; resume --remeasure takes the sweep's untrusted timings again and keeps them")
        next_command(f"resume {found.sweep} --remeasure")
    else:
        say("nothing was written to the ledger: a sweep whose grid has measure: {level: publish} keeps its timings")
        next_command("doctor")
