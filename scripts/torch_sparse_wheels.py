"""Installs torch-scatter and torch-sparse into this environment, from wheels that were built once for its torch.

Their wheels fit one release of torch only, which their file names do not say, so that pip's cache would hand them out for another one. They are
kept in a folder whose name says it, under ``$SPARSEFLEET_WHEELS`` or ``~/.cache/sparsefleet/wheels``. Building takes a C++ compiler, Python's
headers, the network and about ten minutes on two cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("torch-scatter", "torch-sparse")
PIP = (sys.executable, "-m", "pip")


def key(torch_version: str, python: str, platform: str) -> str:
    """The folder's name: ``cp311-torch2.15.0+cu132-linux_x86_64``."""
    return f"{python}-torch{torch_version}-{re.sub(r'[-.]', '_', platform)}"


def requirements(constraints: str) -> list[str]:
    """The pinned versions, out of the text of constraints.txt."""
    pins = dict(line.split("==") for line in constraints.splitlines() if line.startswith(NAMES))
    return [f"{name}=={pins[name].strip()}" for name in NAMES]


def missing(folder: Path, wanted: list[str]) -> list[str]:
    """Of ``wanted`` what has no wheel in ``folder``."""
    return [one for one in wanted if not any(folder.glob(f"{one.replace('-', '_').replace('==', '-')}-*.whl"))]


def build(wanted: list[str], folder: Path) -> None:
    """Builds all at once, each in a process of its own (they compile one file at a time), and moves them into ``folder`` when they are whole.

    Raises:
        SystemExit: one could not be built.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"FORCE_CUDA": "0", "MAX_JOBS": str(os.cpu_count() or 1), **os.environ}
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = (*PIP, "wheel", "--no-cache-dir", "--no-build-isolation", "--no-deps", "--progress-bar", "off", "--wheel-dir", scratch)
        running = [subprocess.Popen((*command, one), env=environment) for one in wanted]
        failed = [one for one, process in zip(wanted, running, strict=True) if process.wait()]
        if failed:
            raise SystemExit(f"could not build {', '.join(failed)}")
        for wheel in Path(scratch).glob("*.whl"):
            wheel.replace(folder / wheel.name)


def say(text: str) -> None:
    """A line on stdout, now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """0 if both are installed and load."""
    import torch

    home = Path(os.environ.get("SPARSEFLEET_WHEELS") or Path.home() / ".cache" / "sparsefleet" / "wheels")
    folder = home / key(torch.__version__, f"cp{sys.version_info[0]}{sys.version_info[1]}", sysconfig.get_platform())
    wanted, begun = requirements((ROOT / "constraints.txt").read_text()), time.monotonic()
    to_build = missing(folder, wanted)
    if to_build:
        say(f"building {', '.join(to_build)} into {folder}")
        subprocess.run((*PIP, "install", "--quiet", "setuptools>=77", "wheel"), check=True)
        build(to_build, folder)
        say(f"built in {time.monotonic() - begun:.0f} s")
    install = ("install", "--no-index", "--no-deps", "--no-cache-dir", "--force-reinstall", "--find-links", str(folder), *wanted)
    subprocess.run((*PIP, *install), check=True)
    subprocess.run((sys.executable, "-c", "import torch_sparse; print('torch_sparse', torch_sparse.__version__)"), check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
