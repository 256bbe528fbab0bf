"""``python -m sparsefleet.cli``: the same program where the console script is not on the path."""

from __future__ import annotations

from sparsefleet.cli import main

main()
