"""Ends the process when it is imported."""

import sys

import sparsefleet

sys.exit(5)


class Wrong(sparsefleet.Pruner):
    """Ends the process when it is imported."""

    name = "exits-at-import"

    def score(self, conn):
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
