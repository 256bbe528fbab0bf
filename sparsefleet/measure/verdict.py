"""The verdict on a figure: it starts as NOT_TRUSTWORTHY and has to earn FASTER, SLOWER, SAME or INCONCLUSIVE. Pure; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsefleet.measure.draws import MIN_KEPT_FOR_INTERVAL
from sparsefleet.measure.ratios import Estimate, Ratio

Word = Literal["FASTER", "SLOWER", "SAME", "INCONCLUSIVE", "NOT_TRUSTWORTHY", "NONE"]
UNTRUSTED: Word = "NOT_TRUSTWORTHY"
FASTER_ABOVE, SLOWER_BELOW = 1.03, 0.97
"""A difference of less than 3 % is none that anyone should act on."""
CPUS_LIMIT = 1.1
"""CPUs that a side may use, over its threads."""

_BEATEN = "faster than this machine's limit"
REASONS = {
    "kept": "{kept} of {rounds} rounds kept{why}",
    "interval": "the interval is ±{percent:.1f} %",
    "no_interval": "too few rounds for an interval",
    "control": "dense against dense reads {ratio:.3f}",
    "drift": "drifted by {percent:+.1f} % while it was measured",
    "between": "the processes differ by {percent:.1f} %",
    "threads": "the {side} side used {cpus:.1f} CPUs with {threads} thread(s) set",
    "limit": "the {side} side is " + _BEATEN + " ({percent:.0f} % of it): the count of its work or the measurement is wrong",
    "shared_device": "another process used the device: {who}",
    "fingerprint": "the machine is not fully described: {what} is missing",
    "hot": "the device was still throttled: {what}",
    "method": "the method's own work is not in this time: {why}",
}
"""Every reason that a figure may be NOT_TRUSTWORTHY for, by its code; docs/numbers.md explains each."""


@dataclass(frozen=True)
class Gates:
    """Limits that a figure must keep; see A3 of the protocol."""

    kept_share: float
    kept: int
    half_width: float
    control: float
    drift: float
    between: float | None

    @property
    def rounds(self) -> int:
        """Fewest rounds that can pass: with fewer, the share that may be dropped would already be too much."""
        return math.ceil(self.kept / self.kept_share)


SCREEN = Gates(kept_share=0.5, kept=20, half_width=0.05, control=0.04, drift=0.05, between=None)
PUBLISH = Gates(kept_share=0.7, kept=30, half_width=0.025, control=0.02, drift=0.03, between=0.05)
LEVELS: Mapping[str, Gates] = {"screen": SCREEN, "publish": PUBLISH}
PROCESSES: Mapping[str, int] = {"screen": 1, "publish": 3}
"""Fresh processes per figure."""


def reason(code: str, **values: Any) -> str:
    """The sentence of one reason."""
    return REASONS[code].format(**values)


def doubts(estimate: Estimate, gates: Gates = SCREEN, threads: int = 1) -> list[str]:
    """What speaks against every figure of the estimate; empty if it passes its gates."""
    found = []
    kept, share = estimate.least_kept
    if kept < gates.kept or share < gates.kept_share:
        why = ", ".join(f"{name} {n}" for name, n in estimate.dropped.items())
        found.append(reason("kept", kept=estimate.kept, rounds=estimate.rounds, why=f" (dropped: {why})" if why else ""))
    if abs(estimate.aa_ratio - 1) > gates.control:
        found.append(reason("control", ratio=estimate.aa_ratio))
    greedy = {side: cpus for side, cpus in estimate.cpus_used.items() if cpus > CPUS_LIMIT * threads}
    found += [reason("threads", side=side, cpus=cpus, threads=threads) for side, cpus in greedy.items()]
    if estimate.least_updates is not None:
        kept, rounds = estimate.least_updates
        if kept < max(MIN_KEPT_FOR_INTERVAL, gates.kept_share * rounds):
            found.append(reason("method", why=f"{kept} of {rounds} timed updates were undisturbed"))
    return found


def unsteady(ratio: Ratio, gates: Gates = SCREEN) -> list[str]:
    """What speaks against one ratio by how it moved, whatever its interval."""
    found = []
    if abs(ratio.drift - 1) > gates.drift:
        found.append(reason("drift", percent=100 * (ratio.drift - 1)))
    if gates.between is not None and ratio.between is not None and ratio.between > gates.between:
        found.append(reason("between", percent=100 * ratio.between))
    return found


def _vague(ratio: Ratio, gates: Gates) -> list[str]:
    if ratio.half_width is None:
        return [reason("no_interval")]
    return [reason("interval", percent=100 * ratio.half_width)] if ratio.half_width > gates.half_width else []


def word(bounds: tuple[float, float] | None, reasons: Sequence[str]) -> Word:
    """The verdict on a speed-up with these bounds, if nothing in ``reasons`` speaks against it."""
    if reasons or bounds is None:
        return UNTRUSTED
    low, high = bounds
    if low > FASTER_ABOVE:
        return "FASTER"
    if high < SLOWER_BELOW:
        return "SLOWER"
    return "SAME" if low >= SLOWER_BELOW and high <= FASTER_ABOVE else "INCONCLUSIVE"


def judge(
    estimate: Estimate, level: str, threads: int = 1, conditions: Iterable[str] = (), ratio: Ratio | None = None
) -> tuple[Word, list[str]]:
    """The verdict on one ratio of the estimate, and why it is NOT_TRUSTWORTHY if it is.

    Args:
        level: ``screen`` or ``publish``.
        threads: that the sides were given.
        conditions: reasons that the samples do not show.
        ratio: default: dense over sparse.
    """
    gates, ratio = LEVELS[level], ratio or estimate.vs_dense
    reasons = [*conditions, *doubts(estimate, gates, threads), *unsteady(ratio, gates), *_vague(ratio, gates)]
    return word(ratio.ci95, reasons), reasons


def trust(timing: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which figures of a timing are trusted, the headline first: sparse against dense, against small-dense, and small-dense against dense.

    A figure that does not exist is not doubted, unless something speaks against the whole measurement.
    """
    alone = timing.get("verdict") == "NONE" and bool(timing.get("reasons"))
    found = [timing.get(name) != UNTRUSTED for name in ("verdict", "rival_verdict", "rival_vs_dense_verdict")]
    return found[0] and not alone, *found[1:]


def is_doubtful(timing: Mapping[str, Any]) -> bool:
    """True if a figure of the timing is NOT_TRUSTWORTHY."""
    return not all(trust(timing))


def beats_limit(timing: Mapping[str, Any]) -> bool:
    """True if a side was faster than the machine can be: then its limits may have been taken beside a neighbour, and are taken again."""
    return any(_BEATEN in text for name in ("reasons", "rival_reasons") for text in timing.get(name, ()))
