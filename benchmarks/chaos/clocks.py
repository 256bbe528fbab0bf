"""RF-19: the wall clock jumps by a day, forth and back, while a sweep runs. Nobody loses a lease, and nothing changes its order.

A module that every Python of the sweep imports first shifts ``time.time`` and ``datetime.now`` by what a file says at that moment; the monotonic
clock is left alone, as an administrator's ``date --set`` leaves it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.chaos.crash_points import committed
from benchmarks.chaos.history import violations
from benchmarks.chaos.sweep import Sweep
from benchmarks.figures import Figure, Run

DAY_S = 86_400
SHIFT = """
import datetime as _d, os as _o, time as _t
_place = _o.environ.get("SHIFTED_CLOCK")
if _place:
    _real, _real_ns, _real_class = _t.time, _t.time_ns, _d.datetime
    def _shift():
        try:
            with open(_place) as file:
                return int(file.read() or 0)
        except (OSError, ValueError):
            return 0
    _t.time = lambda: _real() + _shift()
    _t.time_ns = lambda: _real_ns() + _shift() * 10**9
    class _Meta(type):
        def __instancecheck__(cls, other):
            return isinstance(other, _real_class)
    class datetime(_real_class, metaclass=_Meta):
        @classmethod
        def now(cls, tz=None):
            return _real_class.now(tz) + _d.timedelta(seconds=_shift())
        @classmethod
        def utcnow(cls):
            return _real_class.utcnow() + _d.timedelta(seconds=_shift())
    _d.datetime = datetime
"""


def figures(asked: Run) -> list[Figure]:
    """What differs between a sweep under a jumping clock and the same under a quiet one."""
    n_seeds = asked.pick(10, 3)
    with tempfile.TemporaryDirectory(prefix="sparsefleet-clocks-") as folder:
        root = Path(folder)
        (root / "first").mkdir()
        (root / "first" / "sitecustomize.py").write_text(SHIFT)
        quiet, moved = (_run(root, name, n_seeds, jumps) for name, jumps in (("quiet", False), ("moved", True)))
    asked.keep({"quiet": quiet, "moved": moved})
    if len(quiet["order"]) != 2 * n_seeds:
        raise RuntimeError(f"{len(quiet['order'])} of {2 * n_seeds} trials ended, with exit code {quiet['code']}")
    out_of_order = sum(a != b for a, b in zip_longest(quiet["order"], moved["order"]))
    quick = asked.note()
    return [
        Figure("jumps by a day", "jumps", moved["jumps"], target=3, note=quick),
        Figure("days between the earliest and the latest time in the ledger", "days", moved["days"], target=1, note="the jumps were seen"),
        Figure("leases lost", "attempts", moved["lost"], target=0, at_least=False, note=quick),
        Figure("trials that ended in another order", "trials", out_of_order, target=0, at_least=False, note=quick),
        Figure(
            "committed facts that differ", "ledgers", float(moved["committed"] != quiet["committed"]), target=0, at_least=False, note=quick
        ),
        Figure("violations of the contract", "violations", len(moved["violations"]), target=0, at_least=False, note=quick),
    ]


def _run(root: Path, name: str, n_seeds: int, jumps: bool) -> dict[str, Any]:
    home, clock = root / name, root / f"{name}.clock"
    home.mkdir()
    clock.write_text("0")
    path = os.pathsep.join(filter(None, [str(root / "first"), os.environ.get("PYTHONPATH", "")]))
    sweep = Sweep(
        home,
        n_seeds,
        environment={
            "PYTHONPATH": path,
            "SHIFTED_CLOCK": str(clock),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "SPARSEFLEET_MAX_PARALLEL": "1",
        },
    )
    driver, n_jumps = sweep.driver(), 0
    for n, shift in enumerate((DAY_S, -DAY_S, 0, DAY_S)):
        sweep.wait_for(1 + n * (2 * n_seeds - 2) // 4, driver)
        if jumps and driver.poll() is None:
            clock.write_text(str(shift))
            n_jumps += 1
    code = driver.wait(300)
    attempts = [attempt for row in sweep.rows() for attempt in row.attempts]
    days = {attempt["started"][:10] for attempt in attempts}
    return {
        "code": code,
        "jumps": n_jumps,
        "days": len(days) - 1,
        "lost": sum(attempt["end"] != "SUCCEEDED" for attempt in attempts),
        "order": _order(home),
        "committed": committed(home),
        "violations": violations(home, sweep.id, wall_clock=False),
    }


def _order(home: Path) -> list[str]:
    """Keys of the trials as they ended, one at a time; the outbox counts on, whatever the clock says."""
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        return [key for (key,) in db.execute("SELECT key FROM outbox WHERE kind='trial' ORDER BY id")]
