"""Which family checks a wrong plugin fails, and what they say; heavy ones run only where one is expected to fail."""

from sparsefleet.testing.expect import Nonconforming
from sparsefleet.testing.families import family_checks


def failed_checks(plugin, expected):
    """``{name of a failed check: its message}``."""
    found = {}
    for one in family_checks(plugin):
        if getattr(one, "heavy", False) and one.__name__ != expected:
            continue
        try:
            one(plugin)
        except Nonconforming as problem:
            found[one.__name__] = str(problem)
        except Exception as problem:  # noqa: BLE001  a wrong plugin may raise anywhere; the kit tells that as well
            found[one.__name__] = f"raised {problem!r}"
    return found


def assert_named(plugin, check, words):
    """The check fails, and its message says what came and how to mend it."""
    found = failed_checks(plugin, check)
    assert check in found, f"failed: {sorted(found)}"
    assert words in found[check], found[check]
    assert "mend:" in found[check]
    assert not found[check].rstrip().endswith("mend:"), "a mend that says nothing"
