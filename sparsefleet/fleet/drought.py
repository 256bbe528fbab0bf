"""How long a sweep waits when no node is left that could run what is in line. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 3600.0
"""Time for a node to be mended and started again."""


class Drought:
    """Lasts while nothing runs and no node is there for anything that waits.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def look(self, *, dry: bool) -> None:
        """It begins, goes on, or is over."""
        if not dry:
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    @property
    def over(self) -> bool:
        """True once the limit has passed."""
        return self._since is not None and self._clock() - self._since > LIMIT_S

    def told(self) -> str:
        """When the sweep will end, as the end of a sentence; empty in good times."""
        if self._since is None:
            return ""
        left_s = max(0.0, LIMIT_S - (self._clock() - self._since))
        return f"; the sweep ends in {left_s / 60:.0f} min if none comes, and can be resumed"
