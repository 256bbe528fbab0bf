"""The example pictures of ``docs/pictures.md``: ``python docs/trial_pictures.py --data DIR`` runs two small grids and draws what they left.

It takes some minutes, and DIR must hold Fashion-MNIST (``DIR/FashionMNIST/raw``). Trained weights differ in their last bits between machines, so
these pictures are not checked against the code as the generated pages are; run it when a picture's look has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parent / "pictures"
_COLOURS = 64
GRIDS = {
    "digits": """\
name: docs-digits
dataset: digits
model: {mlp: {hidden: [128, 64]}}
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 10, batch_size: 64}
init: {fan_in: live} # by the dense fan-in SET at 5 % stays at chance for these 210 steps
seeds: 3
axes:
  density: [0.2, 0.05, 0.01]
  method:
    - {pruner: magnitude, schedule: {cubic: {begin: 0.1, end: 0.75, every: 10}}, layer: csr}
    - {rewirer: {set: {every: 20}}, layer: csr}
    - {rewirer: static, layer: csr}
include:
  - {layer: csr, density: 0.1, method: {rewirer: {set: {every: 20}}}, connectivity: {small-world: {exponent: 2.0}}}
measure: {level: none}
""",
    "convolution": """\
name: docs-convolution
dataset: fashion-mnist
model: small-cnn
layer: masked
density: 0.3
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 1, batch_size: 64, max_steps: 300}
method: {pruner: magnitude, pattern: row, schedule: {one-shot: {at: 0.5}}}
measure: {level: none}
""",
}


def main() -> None:
    """Runs the grids in a home of their own and keeps one picture of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--home", type=Path, help="keep the trials here, and use those that are here; default: a temporary folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "SPARSEFLEET_HOME": str(chosen.home or folder / "home"), "SPARSEFLEET_DATA": str(chosen.data)}

        def sparsefleet(*words: str) -> str:
            command = [sys.executable, "-m", "sparsefleet.cli", *words]
            return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

        grids = {name: folder / f"{name}.yaml" for name in GRIDS}
        for name, path in grids.items():
            path.write_text(GRIDS[name])
        sparsefleet("submit", "grid", str(grids["digits"]))
        sparsefleet("pictures", "--out", str(folder / "out"))
        (sweep,) = (folder / "out").iterdir()
        rows = json.loads(sparsefleet("compare", "--json"))["rows"]
        trial = {(row["method"], row["density_asked"]): row["trial_ids"][0] for row in rows}
        for key in (("set", 0.2), ("magnitude+cubic", 0.05)):
            sparsefleet("pictures", trial[key], "--out", str(folder / "out"))
        done = json.loads(sparsefleet("run", str(grids["convolution"]), "--only", "arm=sparse", "--json"))
        sparsefleet("pictures", done["folder"], "--out", str(folder / "out"), "--kind", "convolution")
        rewired, pruned, conv = trial["set", 0.2], trial["magnitude+cubic", 0.05], done["record"]["spec_id"]
        for name in ("accuracy", "curves", "patterns"):
            _keep(sweep / f"{name}.png", f"sweep-{name}")
        for name in ("weights", "evolution"):
            _keep(folder / "out" / rewired / f"{name}.png", f"trial-{name}")
        for name in ("masks", "histograms", "density", "curves"):
            _keep(folder / "out" / pruned / f"{name}.png", f"trial-{name}")
        _keep(folder / "out" / conv / "convolution.png", "trial-convolution")


def _keep(picture: Path, name: str) -> None:
    """A copy in fewer colours, which is a third of the size."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(_COLOURS).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
