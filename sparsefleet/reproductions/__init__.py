"""Published tables with the grids that run them, usable by name: ``sparsefleet reproduce lenet-300-100``."""
