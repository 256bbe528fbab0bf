"""Measures a case: every peer in fresh processes, one after another. Needs neither ray nor mlflow."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import NotRun
from benchmarks.harness import run_module
from benchmarks.ops import cases
from benchmarks.ops.cases import FEATURE_MAJOR, MAIN, ROW_MAJOR, Case, Shape
from sparsefleet.measure.verdict import UNTRUSTED
from sparsefleet.report.breakeven import crossing

OURS = "ours"
_MOST_OF_FREE = 0.85
_GB = 1e9
_CHILD_MINUTES = 15.0


class Broken(Exception):
    """A check failed: ours is wrong, or its process broke."""


@dataclass(frozen=True)
class How:
    """What is asked for.

    Attributes:
        peers: by name; empty for those of the case.
        threads: on a CPU; None for those of the case.
        effort: of ``timing.Effort``, what differs from its defaults.
    """

    peers: tuple[str, ...] = ()
    threads: int | None = None
    quick: bool = False
    device: str = ""

    def peers_of(self, case: Case) -> tuple[str, ...]:
        """What is measured beside ours."""
        return self.peers or case.peers or tuple(name for name in cases.NAMES if name not in cases.ONLY_IF_ASKED)


def measure(case: Case, how: How, say: Callable[[str], None]) -> dict[str, Any]:
    """All points of a case, as JSON: ``{"case", "ours", "peers", ...}``; a case of several shapes has them under ``points``.

    Raises:
        NotRun: ours does not fit into the memory that is free.
        Broken: ours is wrong or its process broke.
    """
    device = how.device or _device()
    threads = how.threads or case.threads or len(os.sched_getaffinity(0))
    about = {"case": case.id, "title": case.title, "batch": case.batch, "device": device, "threads": threads, "quick": how.quick}
    points = [_point(case, shape, how, Job(device, threads, how.quick, say)) for shape in case.shapes]
    if len(points) == 1:
        return about | points[0]
    middle = points[len(points) // 2]
    return about | middle | {"break_even": break_even(points), "points": points}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Job:
    """What the processes of a case share."""

    device: str
    threads: int
    quick: bool
    say: Callable[[str], None]

    def run(self, folder: Path, **asked: Any) -> dict[str, Any]:
        """The answer of a process; ``not_run`` with the reason if it did not survive."""
        question, answer = folder / "job.json", folder / "answer.json"
        question.write_text(json.dumps({**asked, "device": self.device, "threads": self.threads, "quick": self.quick}))
        answer.unlink(missing_ok=True)
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if self.device == "cpu" else {}
        code = run_module("benchmarks.ops.child", [str(question), str(answer)], threads, 60 * _CHILD_MINUTES)
        if answer.exists():
            return dict(json.loads(answer.read_text()))
        if code is None:
            return {"not_run": f"took longer than {_CHILD_MINUTES:.0f} minutes"}
        return {"not_run" if code == -9 else "wrong": f"its process ended with {code}{' (out of memory?)' if code == -9 else ''}"}


def _point(case: Case, shape: Shape, how: How, job: Job) -> dict[str, Any]:
    """One shape of a case."""
    about = f"{case.id}: {shape}, batch {case.batch}"
    with tempfile.TemporaryDirectory(prefix="sparsefleet-ops-") as name:
        folder = Path(name)
        where, numbers = str(folder / "problem.pt"), [shape.n_in, shape.n_out, shape.density]
        job.say(f"{about}, {shape.nnz:,} connections, {job.device}, {job.threads} thread(s): making it, and its answers in float64")
        made = job.run(folder, job="make", problem=where, shape=numbers, batch=case.batch)
        if made:
            raise Broken(f"{about}: {made.get('wrong') or made['not_run']}")
        names = (OURS, *how.peers_of(case))
        found = {}
        for n, peer in enumerate(names, 1):
            begun = time.monotonic()
            matters = peer == OURS or any(target.against == peer for target in case.targets)
            why_not = refusal(peer, shape, case.batch, job.device)
            job.say(f"  {n}/{len(names)} {peer}{f': {why_not}' if why_not else ''}")
            asked = {"problem": where, "peer": peer, "key": f"ops|{about}|{peer}", "effort": _effort(case, job.device, matters=matters)}
            row = {"not_run": why_not} if why_not else job.run(folder, job="time", **asked)
            if not row.keys() & {"not_run", "wrong"}:
                layouts = (FEATURE_MAJOR, ROW_MAJOR) if peer == OURS else (row["layout"],)
                row["memory"] = {layout: _peak(job.run(folder, job="peak", layout=layout, **asked)) for layout in layouts}
            row["seconds"] = round(time.monotonic() - begun, 1)
            if peer == OURS and "not_run" in row:
                raise NotRun(f"ours: {row['not_run']}")
            if peer == OURS and "wrong" in row:
                raise Broken(f"{about}: {row['wrong']}")
            for word in ("not_run", "wrong"):
                if row.get(word) and not why_not:
                    job.say(f"      {word.replace('_', ' ')}: {row[word]}")
            found[peer] = row
    density = shape.nnz / shape.sites
    return {"shape": numbers[:2], "density": density, "nnz": shape.nnz, "ours": _ours(found.pop(OURS))} | {
        "peers": {peer: _peer(row) for peer, row in found.items()}
    }


def _effort(case: Case, device: str, *, matters: bool) -> dict[str, float]:
    """Peers without a target get less patience, each point of a case of several less time, and a GPU needs little of either."""
    effort = {} if matters else {"patience_s": 30.0}
    if device != "cpu":
        return effort | {"budget_s": 4.0, "warmup_s": 1.0}
    return effort | ({"budget_s": 8.0} if len(case.shapes) > 1 else {})


def refusal(peer: str, shape: Shape, batch: int, device: str) -> str:
    """Why a peer is not even tried: another kind of device, or the memory; empty if it is."""
    from benchmarks.ops.peers import OURS as OWN, kinds
    from sparsefleet.measure.run import memory_free

    kind = OWN if peer == OURS else kinds()[peer]
    if kind.device and kind.device != device:
        return f"only on {'a GPU' if kind.device == 'cuda' else 'a CPU'}"
    free, needs = memory_free(device), kind.needs(shape, batch)
    if free is not None and needs > _MOST_OF_FREE * free:
        return f"needs {needs / _GB:.0f} GB, {free / _GB:.0f} GB are free"
    return ""


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    """Ours with the layout kept, and with transposes in and out (which stood in the peer's place) under ``row_major``."""
    ops = row["ops"]
    return {
        **{f"{short}_ms": ops[op]["ours_ms"] for short, op in SHORT.items()},
        **row["memory"][FEATURE_MAJOR],
        "limit": row["limit"],
        "row_major": {f"{short}_ms": ops[op]["ms"] for short, op in SHORT.items()} | row["memory"][ROW_MAJOR],
        "row_major_over_kept": ops[MAIN]["ratio"],
        "verdict": ops[MAIN]["verdict"],
        "reasons": ops[MAIN]["reasons"],
        "error": row["errors"]["ours"],
        "seconds": row["seconds"],
    }


def _peak(answer: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes, or None and why not."""
    return {"peak_bytes": None, "build_bytes": None, "peak_why_not": "".join(answer.values())} if "peak_bytes" not in answer else answer


SHORT = {"fwd": "forward", "bwd": "backward", "fwd_bwd": MAIN, "step": "step"}


def _peer(row: dict[str, Any]) -> dict[str, Any]:
    """Times, ratio by forward + backward with the layout of ours kept, interval and verdict; or why there is none."""
    if "ops" not in row:
        return row
    main = row["ops"][MAIN]
    return {
        **{f"{short}_ms": row["ops"][op]["ms"] for short, op in SHORT.items()},
        **row["memory"][row["layout"]],
        "ratio_vs_ours": main["ratio"],
        "ci": main["ci"],
        "verdict": main["verdict"],
        "reasons": main["reasons"],
        "layout": row["layout"],
        "error": row["errors"]["peer"],
        "ops": row["ops"],
        "seconds": row["seconds"],
    }


def fastest_dense(point: dict[str, Any], op: str = MAIN) -> dict[str, Any] | None:
    """Of plain and compiled dense fp32 the one that beats ours by most: the figures of ``op``; None without either."""
    rows: Sequence[dict[str, Any]] = [
        point["peers"][name]["ops"][op]
        for name in (cases.DENSE, cases.DENSE_COMPILED)
        if "ops" in point["peers"].get(name, {}) and point["peers"][name]["ops"][op]["ratio"] is not None
    ]
    return min(rows, key=lambda row: row["ratio"], default=None)


def break_even(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sparsity from which on ours is faster than dense: log-log between the two points around it, never beyond the points measured.

    Returns:
        ``percent``, a bound where ``bound`` says ``at most`` (ours is faster at every point) or ``at least`` (dense is), None where the ratios
        allow neither; ``note``; and ``doubts``, what speaks against the timings that it rests on.
    """
    rows = {point["density"]: row for point in points if (row := fastest_dense(point)) is not None}
    doubts = [f"density {density:.4g}: {doubt}" for density, row in rows.items() if (doubt := doubt_of(row))]
    ratios = {density: row["ratio"] for density, row in rows.items()}
    if not ratios:
        return {"percent": None, "bound": "", "note": "dense was measured at no sparsity", "doubts": doubts}
    if min(ratios.values()) > 1:
        density, bound, note = max(ratios), "at most", "at most: ours is faster at every sparsity that was measured"
    elif max(ratios.values()) <= 1:
        density, bound, note = min(ratios), "at least", "at least: dense is faster at every sparsity that was measured"
    else:
        found, _, note = crossing(ratios)
        if found is None:
            return {"percent": None, "bound": "", "note": note, "doubts": doubts}
        density, bound = found, ""
    return {"percent": 100 * (1 - density), "bound": bound, "note": note, "doubts": doubts}


def doubt_of(row: dict[str, Any], which: str = "") -> str:
    """Why the ratio of a comparison proves nothing; empty where its verdict is trusted.

    Args:
        which: ``row_major_`` for that ratio.
    """
    return f"not trustworthy: {'; '.join(row[f'{which}reasons'])}" if row[f"{which}verdict"] == UNTRUSTED else ""
