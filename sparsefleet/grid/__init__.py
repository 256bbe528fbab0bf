"""From a grid file to trials."""
