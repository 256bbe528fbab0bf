"""Checks for a plugin of any family that watch one typical use of it: what it draws from, what it hashes and what it leaves behind."""

from __future__ import annotations

import torch

from sparsefleet.plugin import Plugin
from sparsefleet.testing.exercise import exercise
from sparsefleet.testing.expect import expect, heavy
from sparsefleet.testing.leaks import growth
from sparsefleet.testing.salted import salted_hash
from sparsefleet.testing.samples import disturb_global_seeds
from sparsefleet.testing.surroundings import Generators

_INITIALISES = ("activation", "model")
"""Families whose modules torch initialises from its own generator, which the core seeds."""


def runs(plugin: Plugin) -> None:
    """One typical use of it comes to an end; otherwise what needs it to run is not asked."""
    exercise(plugin)


def draws_from_its_stream_alone(plugin: Plugin) -> None:
    """Random numbers come from the ``rng`` that is given: a global generator is shared with everybody and lost by a checkpoint."""
    exercise(plugin)  # what is imported late may draw
    disturb_global_seeds(1)  # where one was just seeded, seeding it alike again would not show
    before = Generators()
    exercise(plugin)
    moved = [name for name in before.moved() if not (name == "torch" and plugin.family in _INITIALISES)]
    expect(
        not moved,
        "the global generators of random, numpy and torch untouched",
        f"drew from or seeded that of {' and '.join(moved)}",
        "draw from the rng argument or conn.rng, e.g. conn.rng.at(conn.flat)",
    )


def does_not_depend_on_hash(plugin: Plugin) -> None:
    """The builtin ``hash`` of a text is another number in every process, so no result may depend on it."""
    own, seen, callers = type(plugin).__module__.partition(".")[0], [], set()
    for salt in (1, 2):
        with salted_hash(own, salt) as lines:
            seen.append(exercise(plugin))
        callers |= set(lines)
        if not lines:
            return
    same = all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    expect(
        same,
        "the same results whatever hash() answers for texts",
        f"they differ; hash() is called at {', '.join(sorted(callers))}",
        "use sparsefleet.rng.key_of(...) or zlib.crc32(text.encode())",
    )


@heavy
def leaks_nothing(plugin: Plugin) -> None:
    """Many uses in a row leave no more memory, threads, processes or open files behind than one."""
    found = growth(lambda: exercise(plugin))
    expect(
        not found,
        "nothing that grows from use to use",
        "; ".join(found),
        "keep nothing in globals or caches without a bound; join threads and close files where they were opened (with …:)",
    )


CHECKS = (draws_from_its_stream_alone, does_not_depend_on_hash, leaks_nothing)
