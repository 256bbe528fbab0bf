"""What of the public plugin API will go, each warned of at least one minor release earlier; docs/compatibility.md tells the policy.

The catalogue says which plugins still use a name of this table, and ``plugins list``, ``plugins show`` and ``plugins check`` print it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deprecation:
    """One public name that will go or change.

    Attributes:
        what: the fact, field or method of a plugin class as ``Class.name``; or a hook or a name of ``sparsefleet``.
        since: the minor release that began to warn.
        removed_in: the first minor release without it.
        instead: what an author writes in its place.
    """

    what: str
    since: str
    removed_in: str
    instead: str

    def __post_init__(self) -> None:
        if _minor(self.since) >= _minor(self.removed_in):
            raise ValueError(
                f"{self.what}: warns in {self.since} of what goes in {self.removed_in}; the policy is one minor release earlier"
            )

    def __str__(self) -> str:
        return f"{self.what} goes in sparsefleet {self.removed_in}: {self.instead}"


def _minor(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


DEPRECATED: tuple[Deprecation, ...] = ()


def used_by(cls: type) -> list[str]:
    """A sentence for each name of the table that a plugin class sets or overrides, itself or in a base of its own."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in ("sparsefleet", "builtins", "pydantic")]
    families = {base.__name__ for base in cls.__mro__ if base not in own}
    found = []
    for entry in DEPRECATED:
        owner, _, name = entry.what.rpartition(".")
        if owner in families and any(name in vars(base) or name in vars(base).get("__annotations__", {}) for base in own):
            found.append(str(entry))
    return found


def implemented_by(module: object) -> list[str]:
    """A sentence for each hook of the table that a plugin module implements."""
    return [str(entry) for entry in DEPRECATED if hasattr(getattr(module, entry.what, None), "sparsefleet_impl")]
