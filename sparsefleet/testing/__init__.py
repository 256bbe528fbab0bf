"""The conformance kit for plugin authors: ``check(plugin)`` lists what is wrong, ``@conformance(plugin)`` makes pytest cases of it."""

from sparsefleet.testing.expect import Nonconforming
from sparsefleet.testing.kit import check, check_all, checks_for, conformance

__all__ = ["Nonconforming", "check", "check_all", "checks_for", "conformance"]
