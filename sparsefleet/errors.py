"""The exception tree. Each class knows the exit code that the command line ends with.

SparsefleetError            1
├── UserError               2   bad input: a grid, an option, a name
│   ├── InvalidGrid         2   one or more problems of one grid file
│   ├── UnknownPlugin       2   a name that no installed plugin carries
│   └── InvalidMask         2   connections or a mask that cannot be right
├── PluginError             3   a known plugin that is broken, mismatched or raised
│   └── VersionSkew         3   nodes run other code than a sweep was submitted with
├── BackendUnreachable      4   Ray, MLflow or a store did not answer
│   └── NoSpace             4   a disk is full
├── TrialsFailed            5   the sweep ended with failed trials
├── NotTrustworthy          6   a figure failed its gates
├── SweepLocked             75  another driver holds this sweep
├── TrialError              1   ends a trial; carries its recorded state
│   └── Diverged            1   the loss became NaN or infinite
└── IntegrityError          1   a stored file does not match its digest
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class SparsefleetError(Exception):
    """An error with a sentence for the user, and optionally its cause and its fix."""

    exit_code = 1

    def __init__(self, what: str, *, cause: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class UserError(SparsefleetError):
    """Bad input."""

    exit_code = 2


class InvalidGrid(UserError):
    """All problems of one grid file, each with its file, line and key."""

    def __init__(self, problems: Iterable[str], *, fix: str | None = None) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems), fix=fix)


class UnknownPlugin(UserError):
    """A name that no installed plugin carries."""

    def __init__(self, family: str, name: str, known: Iterable[str], unusable: Sequence[str] = ()) -> None:
        known = sorted(known)
        cause = f"it may be one of what cannot be used here: {', '.join(unusable)}; see sparsefleet plugins list" if unusable else None
        super().__init__(f"unknown {family} {name!r}", cause=cause, fix=did_you_mean(name, known))
        self.family, self.name = family, name


class InvalidMask(UserError):
    """Connections or a mask with a wrong shape, range, dtype, order or a duplicate."""


class PluginError(SparsefleetError):
    """A known plugin that is broken, mismatched, or raised."""

    exit_code = 3


class VersionSkew(PluginError):
    """Nodes run other code than a sweep was submitted with.

    Attributes:
        differences: by what differs, e.g. ``pruner/rigl``: what was submitted, and by node what is there.
    """

    def __init__(self, differences: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
        self.differences = differences
        nodes = sorted({node for _, there in differences.values() for node in there})
        super().__init__(
            f"{', '.join(nodes)} {'runs' if len(nodes) == 1 else 'run'} other code than the sweep was submitted with: {', '.join(differences)}",
            fix="install those versions on every node; or go on with what is installed, where only what depends on it gets new trials:"
            " sparsefleet resume SWEEP --accept-new-code",
        )


class BackendUnreachable(SparsefleetError):
    """Ray, MLflow or an artifact store did not answer."""

    exit_code = 4


class NoSpace(BackendUnreachable):
    """A disk is full, or nearly so."""


class TrialsFailed(SparsefleetError):
    """The sweep ended, and some of its trials failed."""

    exit_code = 5


class NotTrustworthy(SparsefleetError):
    """A figure failed its gates."""

    exit_code = 6


class SweepLocked(SparsefleetError):
    """Another driver holds this sweep."""

    exit_code = 75


class TrialError(SparsefleetError):
    """Ends a trial; ``state`` is what the ledger records."""

    state = "PLUGIN_ERROR"


class Diverged(TrialError):
    """The loss became NaN or infinite at ``step``."""

    state = "DIVERGED"

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss is {loss} at step {step}")
        self.step = step


class IntegrityError(SparsefleetError):
    """A stored file does not match its digest."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The close match for ``word`` if there is one, and the list of valid names."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = ", ".join(known) if known else "none installed"
    return f"did you mean {close[0]!r}? valid: {listed}" if close else f"valid: {listed}"
