"""Comparisons with a known answer: n equal matrix products against m of them, so that the true speed-up is n / m."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.figures import Run
from benchmarks.trust.neighbours import Foreign, neighbours
from sparsefleet.measure.clock import CpuClock
from sparsefleet.measure.estimate import Estimate, Plan, compare
from sparsefleet.measure.verdict import Word, judge

LEVEL = "screen"
AA = (20, 20)
PLANTED = {1.1: (22, 20), 0.9: (18, 20), 2.0: (20, 10)}
"""Products of the dense and of the sparse side."""
_SIZES = (96, 128, 192, 256)
_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """One comparison with a known answer."""

    truth: float
    estimate: Estimate
    verdict: Word
    reasons: list[str]
    seconds: float

    @property
    def trusted(self) -> bool:
        """Whether a table would print it."""
        return self.verdict != "NOT_TRUSTWORTHY"

    @property
    def error(self) -> float:
        """Relative error of the figure; infinite if there is none."""
        return abs((self.estimate.speedup or float("inf")) / self.truth - 1)

    @property
    def is_false(self) -> bool:
        """True if the verdict claims a difference that is not there, denies one that is, or has the wrong sign."""
        right = "FASTER" if self.truth > 1 else "SLOWER" if self.truth < 1 else "SAME"
        return self.verdict in {"FASTER", "SLOWER", "SAME"} - {right}

    @property
    def found(self) -> bool:
        """True if the verdict is the right one of FASTER, SLOWER and SAME."""
        return self.verdict in ("FASTER", "SLOWER", "SAME") and not self.is_false

    @property
    def covered(self) -> bool:
        """True if the interval holds the truth."""
        return self.estimate.ci95 is not None and self.estimate.ci95[0] <= self.truth <= self.estimate.ci95[1]

    def to_json(self) -> dict[str, Any]:
        """For the results file."""
        e = self.estimate
        control = {"aa_ratio": e.aa_ratio, "drift": e.drift, "kept": e.kept, "rounds": e.rounds}
        return {"truth": self.truth, "speedup": e.speedup, "ci95": e.ci95, "verdict": self.verdict, "reasons": self.reasons, **control}


def work(n: int, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """``n`` products of ``weight`` with the input."""

    def call(x: torch.Tensor) -> torch.Tensor:
        for _ in range(n):
            with torch.inference_mode():  # inside: whatever is paid once per call would make the truth differ from n / m
                out = weight @ x
        return out

    return call


def cell(products: tuple[int, int], index: int, threads: int = 1, *, shared: bool = False) -> Cell:
    """Times one cell; sizes differ from cell to cell.

    Args:
        products: of the dense and of the sparse side.
        shared: all sides multiply by the same matrix. What the caches do to a side that comes after another one is then the same for all, and
            the truth is n / m to the last digit; three matrices are what a comparison of networks is like.
    """
    size = random.Random(index).choice(_SIZES)
    inputs = [torch.randn(size, _BATCH, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    weights = [torch.randn(size, size, generator=torch.Generator().manual_seed(0 if shared else i)) for i in range(3)]
    if shared:
        weights = weights[:1] * 3
    n, m = products
    started = time.perf_counter()
    dense, second, sparse = work(n, weights[0]), work(n, weights[1]), work(m, weights[2])
    plan = Plan(f"planted|{n}|{m}|{index}|{threads}")
    estimate, _ = compare(dense, sparse, second=second, inputs=inputs, plan=plan, clock=CpuClock(threads))
    verdict, reasons = judge(estimate, LEVEL, threads)
    return Cell(n / m, estimate, verdict, reasons, time.perf_counter() - started)


def cells(
    run: Run, n: int, load: str, *, kinds: Sequence[tuple[int, int]] = (AA,), threads: int = 1, shared: bool = False
) -> tuple[list[Cell], Foreign]:
    """``n`` cells of each kind in turn, beside the neighbours of ``load``, and what others used meanwhile."""
    torch.set_num_threads(threads)
    done: list[Cell] = []
    with neighbours(load) as foreign:
        for index in told(run, n, f"{load}, {threads} thread(s)"):
            done += [cell(kind, index, threads, shared=shared) for kind in kinds]
    return done, foreign


def told(run: Run, n: int, what: str) -> Iterator[int]:
    """0 to n - 1, with a line on stderr now and then."""
    for index in range(n):
        if index and index % max(1, n // 5) == 0:
            run.say(f"{what}: {index} of {n}")
        yield index


def tally(done: Sequence[Cell]) -> str:
    """Verdicts, and how long a cell took, for the note."""
    words = Counter(one.verdict for one in done)
    return f"{', '.join(f'{n} {word}' for word, n in words.most_common())}; {sum(one.seconds for one in done) / len(done):.1f} s a cell"


def raw(done: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells for the results file."""
    return [one.to_json() for one in done]
