"""What sparsefleet claims of itself, measured."""
