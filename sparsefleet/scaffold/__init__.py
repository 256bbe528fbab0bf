"""A plugin project of one's own, written from templates: ``sparsefleet plugins new``."""

from sparsefleet.scaffold.project import TARGET_LINES, render, write

__all__ = ["TARGET_LINES", "render", "write"]
