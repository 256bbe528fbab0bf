"""``run``: one trial in this process, without Ray."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.grids import only_option, set_option
from sparsefleet.cli.session import Session, json_option, leave, plugin_option, setting_option, verb
from sparsefleet.cli.talk import data, emit, next_command, say

if TYPE_CHECKING:
    from sparsefleet.grid.expand import Point
    from sparsefleet.registry import Catalog
    from sparsefleet.trial.record import Record
    from sparsefleet.trial.spec import TrialSpec

_LISTED = 12


@verb(
    "run",
    "run quickstart --only method=set,density=0.1,seed=0",
    "run quickstart --point 3",
    "run spec.json --json",
    short="One trial here: no Ray, no MLflow.",
)
@click.argument("grid")
@only_option
@click.option("--point", type=click.IntRange(0), metavar="INDEX", help="The trial of this index, in the grid's order, from 0.")
@set_option
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of the trial.")
@setting_option("data")
@plugin_option
@json_option
def run(session: Session, grid: str, only: Sequence[str], point: int | None, set_: Sequence[str], **options: Any) -> None:
    """Run one trial here, in this process: no Ray, no MLflow, no ledger.

    GRID is a grid file, the name of a shipped grid, or a JSON file with one trial's spec (spec.json of any trial). A trial that starts from
    another runs that one first. Ends with 5 if the trial failed.
    """
    from sparsefleet.registry import catalog

    _refuse_device(options["device"])
    home, plugins = session.made_home(), catalog()
    *before, spec = _chosen(grid, only, point, set_, plugins)
    data_root = Path(session.get("data"))
    if _is_spec(grid):  # of a grid it is looked at when the grid is read
        _refuse_connections(spec, data_root, plugins)
    here = _Here(home / "runs", data_root, options["device"], options["threads"], plugins)
    start: Record | None = None
    for earlier in before:
        start = here.run(earlier, start)
    record = here.run(spec, start)
    folder = here.folder(spec)
    if options["as_json"]:
        emit({"folder": str(folder), "record": record.to_json()})
    else:
        _show(record, folder)
    if record.state.value not in ("SUCCEEDED", "DIVERGED"):
        leave(5)
    if not options["as_json"] and not _is_spec(grid):
        next_command(f"submit grid {grid}{session.plugin_flags}")


def _refuse_device(device: str) -> None:
    """Refuses a device that is none, or is not here."""
    from sparsefleet.errors import UserError

    if device == "cpu":
        return
    named = re.fullmatch(r"cuda(?::(\d+))?", device)
    if not named:
        raise UserError(f"--device {device}: no such device", fix="cpu, cuda or cuda:N")
    import torch

    n_here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(named[1] or 0) >= n_here:
        raise UserError(f"--device {device}: torch sees {n_here} CUDA devices here", fix="--device cpu")


def _refuse_connections(spec: TrialSpec, data_root: Path, catalog: Catalog) -> None:
    """Refuses a spec whose connectivity does not fit its network."""
    from sparsefleet.registry import Registry
    from sparsefleet.trial.build import check_connectivity

    if spec.method.rewirer:
        check_connectivity(spec, Registry(catalog), data_root)


class _Here:
    """Runs trials in folders of ``root``."""

    def __init__(self, root: Path, data_root: Path, device: str, threads: int, catalog: Catalog) -> None:
        self.root, self.data_root, self.device, self.threads, self.catalog = root, data_root, device, threads, catalog

    def folder(self, spec: TrialSpec) -> Path:
        """Where the trial's files lie."""
        return self.root / spec.spec_id

    def run(self, spec: TrialSpec, start: Record | None = None) -> Record:
        """One trial to its end; ``start`` is the record of the trial whose weights it takes.

        Raises:
            UserError: the spec starts from a trial that is not given or did not succeed.
        """
        import torch

        from sparsefleet.cli.labels import trial_label
        from sparsefleet.errors import UserError
        from sparsefleet.trial.identity import Keys
        from sparsefleet.trial.request import TrialRequest
        from sparsefleet.trial.run import run_trial

        if spec.start and (start is None or start.state.value != "SUCCEEDED"):
            state = start.state.value if start else "not here"
            raise UserError(
                f"the trial starts from {spec.start.trial}, which is {state}", fix="run it from its grid, so that that one runs first"
            )
        keys = Keys(self.catalog, self.data_root)
        depends = keys.request(spec, self.threads, self.device)
        folder = self.folder(spec)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        request = TrialRequest(
            spec=spec,
            trial_key=keys.key(spec, self.threads, self.device, start.trial_key if start else None),
            workdir=folder,
            data_root=self.data_root,
            device=self.device,
            threads=self.threads,
            start=self.root / start.spec_id if start else None,
            code=depends["code"],
            data=depends["data"],
        )
        torch.set_num_threads(self.threads)
        said = _Said(f"{spec.spec_id}  {trial_label(spec.to_json())}")
        return run_trial(request, said.progress)


class _Said:
    """One line per epoch."""

    def __init__(self, what: str) -> None:
        say(what)
        self._epoch = -1

    def progress(self, report: dict[str, Any]) -> None:
        """Says a report if its epoch is new."""
        if report.get("epoch", 0) != self._epoch:
            self._epoch = report.get("epoch", 0)
            parts = [f"step {report['step']}/{report['total_steps']}"]
            parts += [f"{n} {report[n]:.4g}" for n in ("loss", "accuracy") if isinstance(report.get(n), (int, float))]
            say("  " + ", ".join(parts))


def _is_spec(grid: str) -> bool:
    return grid.endswith(".json")


def _chosen(grid: str, only: Sequence[str], point: int | None, set_: Sequence[str], catalog: Catalog) -> list[TrialSpec]:
    """The one trial that is asked for, and before it those that it starts from, first to last."""
    from sparsefleet.cli.labels import matches_any, trial_label
    from sparsefleet.errors import UserError

    if _is_spec(grid):
        if only or point is not None or set_:
            raise UserError("--only, --point and --set are for grids; a spec is one trial as it stands")
        return [_read_spec(Path(grid))]
    from sparsefleet.grid.expand import expand
    from sparsefleet.grid.load import load_grid

    loaded = load_grid(grid, set_=set_, catalog=catalog)
    passed: dict[str, TrialSpec] = {}
    numbered = enumerate(_noted(expand(loaded, catalog), passed))
    if point is not None:
        found = [(i, p) for i, p in islice(numbered, point, point + 1)]
    else:
        fitting = ((i, p) for i, p in numbered if matches_any(only, p.spec.to_json(), p.arm, p.spec.spec_id))
        found = list(islice(fitting, _LISTED + 1))
    if len(found) == 1:
        chain = [found[0][1].spec]
        while chain[0].start:
            chain.insert(0, passed[chain[0].start.trial])
        return chain
    if not found:
        raise UserError(f"no trial of {grid} fits {'--point ' + str(point) if point is not None else '--only ' + ' --only '.join(only)}")
    listed = "\n".join(f"  --point {i:<4} {p.arm:<13} {trial_label(p.spec.to_json())}" for i, p in found[:_LISTED])
    more = "\n  …" if len(found) > _LISTED else ""
    raise UserError(f"{grid} has several trials that fit; run takes one", fix=f"choose by --only or --point:\n{listed}{more}")


def _noted(points: Iterable[Point], passed: dict[str, TrialSpec]) -> Iterator[Point]:
    for point in points:
        passed[point.spec.spec_id] = point.spec
        yield point


def _read_spec(path: Path) -> TrialSpec:
    from sparsefleet.trial.outside import read_spec
    from sparsefleet.trial.spec import TrialSpec

    return TrialSpec.model_validate(read_spec(path, path.resolve().parent))


def _show(record: Record, folder: Path) -> None:
    accuracy, counts = record.accuracy, record.counts
    data(f"{record.spec_id} {record.state.value}" + (f": {record.reason}" if record.reason else ""))
    if accuracy and accuracy.test is not None:
        data(f"  {accuracy.metric:<9} {accuracy.test:.4f} on {accuracy.n_test:,} test examples, last checkpoint, {accuracy.steps:,} steps")
    if counts:
        data(
            f"  params    {counts.params:,}, density {counts.density_realised:.4g} of the prunable weights (asked {counts.density_asked:g})"
        )
        stored = (
            f", {counts.stored_bytes:,} in a file ({counts.compression:.2g}x less than dense)" if (counts.compression or 1) >= 1.05 else ""
        )
        data(f"  memory    {counts.resident_bytes:,} bytes resident{stored}")
    data(f"  time      {record.wall_s:.1f} s ({', '.join(f'{name} {s:.1f}' for name, s in record.phases_s.items())})")
    for warning in record.warnings:
        data(f"  warning   {warning}")
    data(f"  files     {folder}")
