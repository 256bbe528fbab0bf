"""Sparse kernels behind plain functions."""
