"""The timing protocol sf-measure/1."""
