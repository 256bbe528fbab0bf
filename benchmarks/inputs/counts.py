"""BI-03: grids of 10^6, 10^12 and 10^18 cells are refused with their exact count, at once and in little memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, Run
from benchmarks.inputs.nasty import HEAD
from benchmarks.security.small import SmallHome
from sparsefleet.spawn import module_command

SIZES = {6: 2, 12: 4, 18: 6}
"""Power of ten, and axes of a thousand values each."""
AXES = ("optimizer.sgd.lr", "optimizer.sgd.momentum", "train.weight_decay", "density", "train.batch_size", "seeds")


def grid_of(power: int) -> str:
    """A grid of ``10**power`` trials: axes of a thousand values, the last of them seeds."""
    n_axes = SIZES[power]
    lines = [f"seeds: [{', '.join(map(str, range(1000)))}]", "axes:"]
    for axis in AXES[: n_axes - 1]:
        step = 1 if axis == "train.batch_size" else 1e-4
        lines.append(f"  {axis}: [{', '.join(f'{(k + 1) * step:g}' for k in range(1000))}]")
    fixed = [] if n_axes >= 5 else ["density: 0.5"]
    return HEAD + "\n".join(["layer: csr", "method: {rewirer: set}", "control_arms: []", *fixed, *lines]) + "\n"


def measured(here: SmallHome, *arguments: str) -> tuple[int, str, float, float]:
    """Exit code, what was said, processor seconds and peak MiB of a command."""
    read, write = os.pipe()
    pid = os.posix_spawn(
        module_command("x")[0],
        module_command("sparsefleet.cli", *arguments),
        here.environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)],
    )
    os.close(write)
    with os.fdopen(read, errors="replace") as stream:
        text = stream.read()
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), text, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def figures(run: Run) -> list[Figure]:
    """For each size: whether it is refused with its count; processor time; memory above that of refusing a file that is not there."""
    found, raw = [], {}
    with tempfile.TemporaryDirectory(prefix="sparsefleet-counts-") as folder:
        here = SmallHome(Path(folder))
        small = here.grid("one", "method: {rewirer: set}")
        for _ in range(2):  # the first fills the catalogue's cache
            _, _, least_s, least_mib = measured(here, "plan", str(small))
        for power in SIZES:
            path = Path(folder) / f"{power}.yaml"
            path.write_text(grid_of(power))
            code, text, cpu_s, mib = measured(here, "submit", "grid", str(path))
            exact = f"{10**power:,}"
            raw[power] = {"code": code, "text": text[:1000], "cpu_s": cpu_s, "mib": mib, "least_s": least_s, "least_mib": least_mib}
            note = "" if code == 2 and exact in text else f"{code}: {text[:200]}"
            found += [
                Figure(f"10^{power} cells refused with their count", "grids", code == 2 and exact in text, target=1, note=note),
                Figure(
                    f"10^{power} cells: processor time", "s", cpu_s, target=1.0, at_least=False, note=f"{least_s:.2f} s of a small grid"
                ),
                Figure(f"10^{power} cells: memory above a small grid's", "MiB", mib - least_mib, target=50.0, at_least=False),
            ]
    run.keep(raw)
    return found
