"""MT-10: the same grid in two fresh processes: accuracies, masks, connections and weights are the same to the last bit.

python -m benchmarks.trust.twice FOLDER            trains every trial of the grid in FOLDER and prints what came of it
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Run
from benchmarks.trust.trained import grid_trials, train
from sparsefleet.trial import files

GRID = """
name: twice
dataset: digits
model: {{mlp: {{hidden: [64, 64]}}}}
optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}
train: {{epochs: {epochs}, batch_size: 32}}
seeds: 2
layer: csr
control_arms: []
axes:
  density: [0.1, 0.3]
  method: [{{rewirer: rigl}}, {{rewirer: set}}, {{pruner: magnitude}}, {{pruner: magnitude, schedule: {{cubic: {{end: 0.8, every: 5}}}}}}]
"""


def figures(run: Run) -> list[Figure]:
    """Trials of two processes that differ."""
    first, second = (apart(run) for _ in range(2))
    changed = {name: [part for part in first[name] if first[name][part] != second[name][part]] for name in first}
    differ = {name: parts for name, parts in changed.items() if parts}
    run.keep({"first": first, "differ": differ})
    note = f"{len(first)} trials of rigl, set and magnitude on csr, and their twins: accuracy, masks, nnz, weights"
    if differ:
        note += f"; first: {next(iter(differ.items()))}"
    missing = len(first.keys() ^ second.keys())
    accuracies = {one["accuracy"] for one in first.values()}
    return [
        Figure("trials that differ between two processes", "trials", len(differ) + missing, target=0, at_least=False, note=run.note(note)),
        Figure("different accuracies among the trials", "values", len(accuracies), target=3, note="one for all would show nothing"),
    ]


def apart(run: Run) -> dict[str, dict[str, Any]]:
    """What ``trained`` finds in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.trust.twice", folder, str(run.pick(3, 1))]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def trained(folder: Path, epochs: int) -> dict[str, dict[str, Any]]:
    """By trial: its accuracy to the last bit, nnz, and digests of the masks and of the weights."""
    return {one.key: _told(train(one, folder / one.key)) for one in grid_trials(GRID.format(epochs=epochs), folder)}


def _told(done: Any) -> dict[str, Any]:
    accuracy = {name: value for name, value in done.record["accuracy"].items() if not name.endswith("_s")}
    masks = done.folder / files.MASKS
    return {
        "accuracy": json.dumps({name: value.hex() if isinstance(value, float) else value for name, value in accuracy.items()}),
        "nnz": [layer["nnz"] for layer in done.record["counts"]["layers"]],
        "masks": hashlib.sha256(masks.read_bytes()).hexdigest() if masks.exists() else None,
        "weights": hashlib.sha256(done.model.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    print(json.dumps(trained(Path(sys.argv[1]), int(sys.argv[2]))))
