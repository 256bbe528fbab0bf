"""Static: the topology that was drawn stays. With random connectivity it is the control arm of every rewirer."""

from typing import ClassVar

from sparsefleet import Progress, Rewirer, hookimpl


class Static(Rewirer):
    """Never changes the topology."""

    name = "static"
    paper = "arXiv 1911.11134, section 4 (baseline)"
    rule = "A <- A"
    cannot = "It explores nothing: what the first topology cannot express is never learned."
    every: ClassVar[int] = 1
    drop_fraction: ClassVar[float] = 0.0
    stop: ClassVar[float] = 1.0

    def due(self, progress: Progress) -> bool:
        """Never."""
        return False


@hookimpl
def sparsefleet_rewirers() -> list[type[Rewirer]]:
    """Registers this module's rewirer."""
    return [Static]
