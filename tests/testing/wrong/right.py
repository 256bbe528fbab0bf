"""A right plugin: magnitude, to a power."""

from pydantic import Field

import sparsefleet


class Power(sparsefleet.Pruner):
    """Magnitude to a power."""

    name = "power"
    exponent: float = Field(1.0, gt=0, description="of the magnitude")

    def score(self, conn):
        return conn.weight.abs() ** self.exponent


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Power]
