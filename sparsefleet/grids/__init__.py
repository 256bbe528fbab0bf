"""Grids that ship with the package."""
