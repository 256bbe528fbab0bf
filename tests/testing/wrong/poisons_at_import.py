"""Sets the default dtype, a variable and a seed when it is imported."""

import os

import torch

import sparsefleet

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
os.environ["OMP_NUM_THREADS"] = "64"


class Wrong(sparsefleet.Pruner):
    """Sets the default dtype, a variable and a seed when it is imported."""

    name = "poisons-at-import"

    def score(self, conn):
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
