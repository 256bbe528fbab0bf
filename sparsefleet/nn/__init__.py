"""Sparse modules, and the machinery that makes a network sparse."""
