"""Bodies of raw samples made by hand: no clock, no network, every figure known in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparsefleet.measure.assemble import timing_of
from sparsefleet.measure.draws import draw_order
from sparsefleet.measure.samples import PLAIN, UPDATE, Body, Samples, letters, reference
from sparsefleet.trial.record import Timing

ROUNDS = 50
Times = float | Sequence[float]
THEORY = {"limit_s": 1e-3, "dense_limit_s": 4e-3, "roofline_speedup": 4.0, "flop_ratio": 10.0}
MACHINE = {"id": "fp:hand", "stable": {"cpu": {"model": "a cpu"}, "software": {"torch": "2.15"}}}


def samples(rounds: int = ROUNDS, **sides: Times) -> Samples:
    """Undisturbed blocks of one call; a number stands for as many equal blocks. Default: dense 10 ms and sparse 5 ms a call."""
    times: dict[str, Times] = {"dense": 10e-3, "sparse": 5e-3, "second": 10e-3, **sides}
    seconds = {side: [value] * rounds if isinstance(value, float) else list(value) for side, value in times.items()}
    rounds = len(seconds["dense"])
    return Samples(
        key="hand",
        clock="cpu-1",
        threads=1,
        n_cpus=2,
        tick_s=0.01,
        inputs=4,
        calls=dict.fromkeys(seconds, 1),
        order=draw_order("hand", rounds, letters(tuple(seconds))),
        seconds=seconds,
        cpu_s=seconds,
        process_s=seconds,
        mhz={},
        machine=[],
        rounds_because="as planned",
        warmup={"seconds": 0.5, "steady": 1.0},
    )


def updates(cost: float, rounds: int = 20) -> Samples:
    """An update that takes as long as ``cost`` plain calls, and the call after it."""
    seconds = {PLAIN: [2e-3] * rounds, UPDATE: [(cost + 1) * 1e-3] * rounds}
    return replace(samples(rounds), calls={PLAIN: 2, UPDATE: 1}, order=["PU"] * rounds, seconds=seconds, cpu_s=seconds, process_s=seconds)


def disturbed(one: Samples, rounds: int) -> Samples:
    """The same blocks, in the first ``rounds`` of which the thread had the processor half of the time."""
    cpu_s = {side: [v / (2 if i < rounds else 1) for i, v in enumerate(values)] for side, values in one.seconds.items()}
    return replace(one, cpu_s=cpu_s)


def body(
    *processes: Samples, versus: str = "dense", level: str = "", machine: Mapping[str, Any] = MACHINE, theory: Any = None, **facts: Any
) -> Body:
    """A body of these processes; publish level where there are several."""
    found = processes or (samples(),)
    job = {
        "config_key": "c" * 64,
        "op": "step",
        "batch_size": 64,
        "device": "cpu",
        "threads": 1,
        "execution": "sparse_csr",
        "dtype": "fp32",
    }
    values: dict[str, Any] = {
        "versus": versus,
        "baseline": "dense_eager" if versus == "dense" else "none",
        "tried": {"dense": [{"name": "dense_eager", "median_s": 0.01}]},
        "rival_params": 1000,
        "rival_note": "",
        "notes": [],
        "theory": THEORY if theory is None else theory,
        "correctness": {"ok": 1.0},
        "conditions": [],
        "memory": {},
        "earlier": [],
    }
    return Body(job, level or ("publish" if len(found) > 1 else "screen"), list(found), values | facts, dict(machine))


def timing(*processes: Samples, **options: Any) -> Timing:
    """What ``timing_of`` says of ``body``, after a journey through bytes."""
    data = body(*processes, **options).to_bytes()
    return timing_of(Body.from_bytes(data), reference(data))
