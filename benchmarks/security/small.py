"""The command line in a home of its own, as a user starts it: real Ray, real MLflow, real files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsefleet.spawn import module_command

GRID = """\
name: {name}
dataset: digits
model: {{mlp: {{hidden: [16]}}}}
optimizer: {{sgd: {{lr: 0.1}}}}
train: {{epochs: 1}}
control_arms: []
density: 0.5
layer: masked
{methods}
measure: {{level: none}}
"""


class SmallHome:
    """A folder with a home and a cache that are made by the first command.

    Args:
        environment: on top of this process's.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.home, self.cache = folder, folder / "home", folder / "cache"
        own = {"SPARSEFLEET_HOME": str(self.home), "SPARSEFLEET_CACHE": str(self.cache), "SPARSEFLEET_DATA": str(folder / "data")}
        self.environment = {**os.environ, **own, "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})}

    def command(self, *arguments: str, umask: int = 0o022, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command's end and what it said."""
        return subprocess.run(
            module_command("sparsefleet.cli", *arguments),
            env={**self.environment, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            umask=umask,
            timeout=400,
            check=False,
        )

    def grid(self, name: str, methods: str) -> Path:
        """A grid of one data set and a tiny net."""
        path = self.folder / f"{name}.yaml"
        path.write_text(GRID.format(name=name, methods=methods))
        return path

    def everything(self) -> Iterator[Path]:
        """Every file and folder of the home and the cache, these two included; what vanishes meanwhile is left out."""
        for root in (self.home, self.cache):
            if root.exists():
                yield root
                yield from sorted(root.rglob("*"))
