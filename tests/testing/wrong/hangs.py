"""Waits for ever and swallows every exception."""

import time

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """Waits for ever and swallows every exception."""

    name = "hangs"

    def score(self, conn):
        while True:
            try:
                time.sleep(0.01)
            except BaseException:  # noqa: BLE001  the fault
                continue
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
