"""SE-01: eight hostile artifacts at every door of the product through which artifacts come: nothing of them runs, nobody dies, each is refused in words."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Run
from benchmarks.security.artifacts import ARTIFACTS, BOMB_MIB, canaries

_GROUPS = ("files", "trials", "mlflow")
"""Doors that are tried in one process; see ``benchmarks.security.doorways``."""
_ADDRESS_SPACE = 12 << 30
_MOST_S = 240.0
"""Of a whole process; on two quiet cores it takes 20."""


def figures(run: Run) -> list[Figure]:
    """Code that ran, processes that died, doors that did not say what is wrong, and how much memory and time one took."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-hostile-") as name:
        folder = Path(name)
        (folder / "canaries").mkdir()
        if there := escaped(folder):
            raise RuntimeError(f"left by an earlier run, remove it: {', '.join(map(str, there))}")
        processes = [_started(folder, group) for group in _GROUPS]
        ends = [_ended(*one) for one in processes]
        ran = sorted(path.name for path in (folder / "canaries").iterdir())
    tried = [one for end in ends for one in end["tried"]]
    out = [f"{path} by {one['artifact']} at {one['door']}" for one in tried for path in one["escaped"]]
    wrong = [f"{one['artifact']} at {one['door']}: {one['wrong']}" for one in tried if one["wrong"]]
    died = [f"{group} ended with {end['code']} at {end['at']}" for group, end in zip(_GROUPS, ends, strict=True) if end["code"]]
    whole = {name for name in ARTIFACTS if not any(one["wrong"] for one in tried if one["artifact"] == name)}
    most_s, most_mib = max((one["seconds"] for one in tried), default=0.0), max((one["mib"] for one in tried), default=0.0)
    run.keep({"tried": tried, "ran": ran, "escaped": out, "died": died})
    doors = len({one["door"] for one in tried})
    none: dict[str, Any] = {"target": 0, "at_least": False}
    return [
        Figure("hostile artifacts of which code ran", "artifacts", len(ran), note=", ".join(ran), **none),
        Figure("files written outside", "files", len(out), note=", ".join(out[:4]), **none),
        Figure("processes that one of them ended", "processes", len(died), note="; ".join(died), **none),
        Figure("artifacts that every door refuses in words", "artifacts", len(whole), target=len(ARTIFACTS), note="; ".join(wrong[:4])),
        Figure("doors that were tried", "doors", doors, target=20, note=f"{len(tried)} tries"),
        Figure("memory that one took, at most", "MiB", most_mib, target=BOMB_MIB / 2, at_least=False),
        Figure("processor time that one took, at most", "s", most_s, target=5, at_least=False, note=_slowest(tried)),
    ]


def escaped(folder: Path) -> list[Path]:
    """What "zip-slip" may have written: below ``folder``, where home and temporary files of a group lie, beside it, and at names with a root."""
    outside = (folder.parent / "escaped", *map(Path, ("/escaped", "/tmp/escaped", "/tmp/sparsefleet-escaped")))
    return [*folder.rglob("escaped"), *(path for path in outside if path.exists())]


def _slowest(tried: list[dict[str, Any]]) -> str:
    one = max(tried, key=lambda one: float(one["seconds"]), default=None)
    return f"{one['artifact']} at {one['door']}" if one else ""


def _started(folder: Path, group: str) -> tuple[subprocess.Popen[bytes], Path]:
    answer = folder / f"{group}.jsonl"
    own = {
        "CANARIES": str(folder / "canaries"),
        "SPARSEFLEET_HOME": str(folder / group / "home"),
        "SPARSEFLEET_DATA": str(folder / group / "data"),
        "TMPDIR": str(folder / group),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    (folder / group).mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.security.hostile", group, str(answer)]
    log = (folder / f"{group}.log").open("wb")
    return subprocess.Popen(
        command, env={**os.environ, **own}, cwd=folder / group, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    ), answer


def _ended(process: subprocess.Popen[bytes], answer: Path) -> dict[str, Any]:
    try:
        code: int | str = process.wait(_MOST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = "no end"
    lines = [json.loads(line) for line in answer.read_text().splitlines()] if answer.exists() else []
    at = lines[-1] if lines else answer.with_suffix(".log").read_text(errors="replace")[-800:]
    return {"code": code, "at": at, "tried": [line for line in lines if "wrong" in line]}


def main(group: str, answer: Path) -> None:
    """Tries every artifact at every door of the group in this process; what is being tried is written before."""
    from benchmarks.security.doorways import SAID, doors_of

    import_module("torch")  # that second is no artifact's
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))  # who reads an endless file ends in Python
    with answer.open("a", buffering=1) as out:
        for door, knock in doors_of(group, Path.cwd() / "good"):
            for name in ARTIFACTS:
                out.write(json.dumps({"at": door, "artifact": name}) + "\n")
                folder = Path.cwd() / "now"
                folder.mkdir()
                begun, before = time.process_time(), _reset_mib()
                known = set(canaries().iterdir())
                wrong = knock(name, folder)
                if set(canaries().iterdir()) - known:
                    wrong = "its code ran"
                out_of_it = escaped(Path.cwd())
                for path in out_of_it:
                    path.unlink(missing_ok=True)  # or another group did
                said = SAID[-1] if SAID else ""
                SAID.clear()
                told = {
                    "door": door,
                    "artifact": name,
                    "wrong": wrong,
                    "said": said,
                    "escaped": [*map(str, out_of_it)],
                    "seconds": round(time.process_time() - begun, 2),
                }
                out.write(json.dumps({**told, "mib": round(_status_mib("VmHWM") - before)}) + "\n")
                shutil.rmtree(folder)


def _reset_mib() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark
    return _status_mib("VmRSS")


def _status_mib(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
