"""Counts to 10**12 inside C, where no signal is heard."""

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """Counts to 10**12 inside C, where no signal is heard."""

    name = "hangs-in-c"

    def score(self, conn):
        sum(range(10**12))
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
