"""A sweep whose code, plugins or data changed after it was entered: its trials again, under the keys that they have now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.fleet.bundle import make_bundle
from sparsefleet.fleet.enqueue import place_of
from sparsefleet.home import artifact_root
from sparsefleet.ledger import SweepTrial, TrialRow, open_ledger
from sparsefleet.ledger.store import ArtifactStore
from sparsefleet.trial.identity import Keys
from sparsefleet.trial.spec import TrialSpec

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog


def renew(sweep: str, catalog: Catalog, home: Path, data_root: Path) -> tuple[int, int]:
    """Gives the sweep's trials the keys of the installed code: how many are new, and of how many. Nothing is run.

    The former trials and their records stay in the ledger; what a change does not concern keeps its key and is not run again.

    Raises:
        UserError: a data set is not there.
        PluginError: a plugin of the sweep is not there any more.
        SweepLocked: a driver is running it.
    """
    with open_ledger(home) as ledger:
        known = ledger.sweep(sweep)
        rows = list(ledger.trials(known.sweep, with_record=False))
        keys = Keys(catalog, Path(known.settings.get("data_root") or data_root))
        renamed = _renamed(rows, keys)
        trials = [_renewed(row, keys, renamed) for row in rows]
        store = ArtifactStore(artifact_root())
        bundle = make_bundle(catalog, {name for trial in trials for name in trial.request["code"]}, store)
        settings = {name: value for name, value in known.settings.items() if name != "bundle"} | ({"bundle": bundle} if bundle else {})
        ledger.create_sweep(known.sweep, known.name, known.digest, known.grid_text, settings, trials)
    return sum(old != new for old, new in renamed.items()), len(rows)


def _renamed(rows: list[TrialRow], keys: Keys) -> dict[str, str]:
    """New keys by old ones; a trial that starts from another comes after it."""
    by_key = {row.key: row for row in rows}
    found: dict[str, str] = {}

    def key_of(old: str) -> str:
        if old not in found:
            row = by_key[old]
            start = key_of(row.depends_on) if row.depends_on else None
            found[old] = keys.key(TrialSpec.model_validate(row.spec), *place_of(row.resources), start)
        return found[old]

    for row in rows:
        key_of(row.key)
    return found


def _renewed(row: TrialRow, keys: Keys, renamed: dict[str, str]) -> SweepTrial:
    asked: dict[str, Any] = {name: getattr(row, name) for name in SweepTrial.__dataclass_fields__}
    asked |= {name: renamed.get(asked[name]) if asked[name] else None for name in ("twin_key", "rival_key", "depends_on")}
    asked["key"] = renamed[row.key]
    asked["request"] = {**row.request, **keys.request(TrialSpec.model_validate(row.spec), *place_of(row.resources))}
    return SweepTrial(**asked)
