"""What speaks against a figure. A reason here never hides the figure; it stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefleet.measure.estimate import Estimate


@dataclass(frozen=True)
class Gates:
    """Limits that a figure must keep."""

    kept_share: float
    kept: int
    half_width: float
    control: float
    drift: float


SCREEN = Gates(kept_share=0.5, kept=20, half_width=0.05, control=0.04, drift=0.05)
PUBLISH = Gates(kept_share=0.7, kept=30, half_width=0.025, control=0.02, drift=0.03)
LEVELS = {"screen": SCREEN, "publish": PUBLISH}


def doubts(estimate: Estimate, gates: Gates = SCREEN) -> list[str]:
    """One sentence per gate that the estimate fails; empty if it passes them all."""
    found = []
    if estimate.kept < gates.kept or estimate.kept < gates.kept_share * estimate.rounds:
        why = ", ".join(f"{reason} {n}" for reason, n in estimate.dropped.items())
        found.append(f"{estimate.kept} of {estimate.rounds} rounds kept" + (f" (dropped: {why})" if why else ""))
    if abs(estimate.aa_ratio - 1) > gates.control:
        found.append(f"dense against dense reads {estimate.aa_ratio:.3f}")
    if estimate.half_width is not None and estimate.half_width > gates.half_width:
        found.append(f"interval is ±{100 * estimate.half_width:.1f} %")
    if abs(estimate.drift - 1) > gates.drift:
        found.append(f"drifted by {100 * (estimate.drift - 1):+.1f} % while it was measured")
    return found


def note(estimate: Estimate, gates: Gates = SCREEN) -> str:
    """``not trusted: …`` or an empty string."""
    found = doubts(estimate, gates)
    return f"not trusted: {'; '.join(found)}" if found else ""
