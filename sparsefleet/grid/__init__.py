"""Grids: from a YAML file to trials, and to a plan of them. Imports neither torch nor ray nor mlflow."""
