"""Ends the process by a function that it took before anybody could guard it."""

from os import _exit

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """Ends the process by a function that it took before anybody could guard it."""

    name = "exits"

    def score(self, conn):
        _exit(0)
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
