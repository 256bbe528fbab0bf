"""Reads at address 0."""

import ctypes

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """Reads at address 0."""

    name = "segfault"

    def score(self, conn):
        ctypes.string_at(0)
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
