"""A right one that cannot be built without a parameter."""

from pydantic import Field

import sparsefleet


class Wrong(sparsefleet.Pruner):
    """A right one that cannot be built without a parameter."""

    name = "needs-a-width"
    width: int = Field(ge=1, description="of a window")

    def score(self, conn):
        return conn.weight.abs()


@sparsefleet.hookimpl
def sparsefleet_pruners():
    return [Wrong]
