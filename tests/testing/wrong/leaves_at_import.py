"""Ends the process when it is imported, with no exception."""

import os

import sparsefleet

os._exit(7)


class Wrong(sparsefleet.Pruner):
    """Ends the process when it is imported, with no exception."""

    name = "leaves-at-import"

    def score(self, conn):
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
