"""Ends the process from C, where nothing of Python's is asked."""

import ctypes

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """Ends the process from C, where nothing of Python's is asked."""

    name = "exits-in-c"

    def score(self, conn):
        ctypes.CDLL(None)._exit(9)
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
