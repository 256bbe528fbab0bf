"""An example of every hook, shown on docs/hooks.md and run by tests/docs/test_hook_examples.py."""

# ruff: noqa: D103

import json
import math
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from sparsefleet import Activation, Connectivity, DataInfo, Dataset, Layer, Model, Pruner, Rewirer, Rng, TensorData, hookimpl
from sparsefleet.nn import CsrLinear


class Largest(Pruner):
    """The largest weights stay."""

    name = "largest"

    def score(self, conn):
        return conn.weight.abs()


@hookimpl
def sparsefleet_pruners():
    return [Largest]


class Steepest(Rewirer):
    """Drops small weights; grows where the gradient is largest."""

    name = "steepest"
    needs_absent_grad = True

    def grow(self, conn, k, rng):
        return conn.best_absent(k)


@hookimpl
def sparsefleet_rewirers():
    return [Steepest]


class Rows(Layer):
    """CSR, by another name; a storage of one's own subclasses sparsefleet.nn.CooLinear."""

    name = "stored-by-rows"
    execution = "sparse_csr"

    def build(self, template, conn, bias):
        return CsrLinear.from_connections(conn, bias)


@hookimpl
def sparsefleet_layers():
    return [Rows]


class Anywhere(Connectivity):
    """Every set of nnz sites is equally likely."""

    name = "anywhere"

    def draw(self, shape, nnz, rng):
        flat = rng.distinct(nnz, shape[0] * shape[1])
        return torch.stack([flat // shape[1], flat % shape[1]])


@hookimpl
def sparsefleet_connectivities():
    return [Anywhere]


class Shrink(Activation):
    """Zero between minus ``by`` and ``by``, and that much nearer to zero elsewhere."""

    name = "shrink"
    by: float = Field(0.1, ge=0, description="how much")

    def build(self, features):
        return nn.Softshrink(self.by)


@hookimpl
def sparsefleet_activations():
    return [Shrink]


class OneHidden(Model):
    """One hidden layer."""

    name = "one-hidden"
    width: int = Field(32, ge=1, description="its units")

    def build(self, data, act):
        read = nn.Linear(math.prod(data.input_shape), self.width)
        return nn.Sequential(nn.Flatten(), read, act(self.width), nn.Linear(self.width, data.n_outputs))

    def narrowed(self, factor):
        return OneHidden(width=max(1, round(self.width * factor)))


@hookimpl
def sparsefleet_models():
    return [OneHidden]


class Sign(Dataset):
    """Is the first of four numbers positive?"""

    name = "sign"
    info: ClassVar[DataInfo] = DataInfo("classification", (4,), 2)

    def files(self, root):
        return []

    def load(self, root, split):
        x = Rng("sign", split).normal(400).float().view(100, 4)
        return TensorData(x, (x[:, 0] > 0).long())


@hookimpl
def sparsefleet_datasets():
    return [Sign]


@hookimpl
def sparsefleet_before_trial(trial):
    torch.backends.cudnn.benchmark = trial["model"]["name"] == "small-cnn"


@hookimpl
def sparsefleet_measure(model, batch):
    inputs, _ = batch
    with torch.no_grad():
        return {"mean_output": float(model(inputs).mean())}


@hookimpl
def sparsefleet_after_trial(trial, result):
    line = json.dumps({"seed": trial["seed"], "state": result["state"]})
    with Path("trials.jsonl").open("a") as file:
        file.write(line + "\n")


@hookimpl
def sparsefleet_on_trial_error(trial, error):
    Path("last-error.txt").write_text(f"seed {trial['seed']}: {type(error).__name__}: {error}\n")


@hookimpl
def sparsefleet_doctor():
    free = Path("/tmp").is_dir()
    yield "room for my temporary files", free, "make the folder /tmp"
