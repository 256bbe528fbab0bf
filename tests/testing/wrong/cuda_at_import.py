"""Puts a tensor on the GPU when it is imported, if there is one."""

import contextlib

import torch

import sparsefleet

with contextlib.suppress(AssertionError, RuntimeError):
    TABLE = torch.ones(3).cuda()


class Wrong(sparsefleet.Pruner):
    """Puts a tensor on the GPU when it is imported, if there is one."""

    name = "cuda-at-import"

    def score(self, conn):
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
