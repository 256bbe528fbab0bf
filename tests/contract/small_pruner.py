"""The source of a small pruner, with whatever a test needs to happen when it is imported."""


def small_pruner(name: str, code: str = "") -> str:
    """A module whose pruner is called ``name``; ``code`` stands after the imports."""
    return f'''
from sparsefleet import Pruner, hookimpl
{code}
class Small(Pruner):
    "Magnitude."
    name = "{name}"
    def score(self, conn):
        return conn.weight.abs()
@hookimpl
def sparsefleet_pruners():
    return [Small]
'''
