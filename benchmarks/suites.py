"""Every suite and its parts. Imports nothing of the product, so that ``--help`` is instant."""

from __future__ import annotations

from benchmarks.harness import Part
from benchmarks.ops.cases import CASES

_BOTH, _CSR, _DENSE = ("fixed-fan-in", "csr"), ("csr",), ("masked",)
REWIRERS = {
    **dict.fromkeys(("set", "rigl", "random-regrow", "itop-set", "itop-rigl", "deep-r", "mest"), _BOTH),
    **dict.fromkeys(("dsr", "srigl"), _CSR),
    **dict.fromkeys(("snfs", "soft-deep-r", "deepr-softmax", "grow-then-prune", "top-kast", "sr-ste"), _DENSE),
}
"""Rewirers, and the layers that their updates are timed on."""
PRUNERS = ("random", "magnitude", "taylor", "snip", "grasp", "synflow", "lamp", "movement", "wanda")

SUITES: dict[str, tuple[Part, ...]] = {
    "cli": (
        Part("PLAN", "time and memory of planning a million points", "benchmarks.cli.times:plan", 0.2),
        Part("HELP", "--help of every command", "benchmarks.cli.times:helps", 0.5),
        Part("plugins-list", "plugins list, cold and from its cache", "benchmarks.cli.plugins:listing", 0.5),
        Part("plugins-lines", "lines of the smallest plugins", "benchmarks.cli.plugins:lines", 0.1),
        Part("plugins-new", "from plugins new to a check and to a row", "benchmarks.cli.plugins:journeys", 6),
    ),
    "fleet": (
        Part("RF-24", "trials per second, ours and Ray Tune's", "benchmarks.fleet.throughput:figures", 15),
        Part("plan-10000", "planning 1,000, 3,000 and 10,000 trials", "benchmarks.fleet.scale:plan", 1),
        Part("queue-10000", "entering and queueing 1,000, 3,000 and 10,000 trials", "benchmarks.fleet.scale:queue", 1.5),
        Part("status-10000", "status of 10,000 finished trials", "benchmarks.fleet.scale:listed", 2.5),
        Part("compare-10000", "compare of 10,000 finished trials", "benchmarks.fleet.scale:listed", 2.5),
    ),
    "chaos": (
        Part("RF-01", "a busy worker is killed every 3 s", "benchmarks.chaos.kill_workers:figures", 2, daily=True),
        Part("RF-02", "workers and drivers are killed, and a second submit", "benchmarks.chaos.kill_workers:storm", 2, daily=True),
        Part("RF-05", "every process of a node is killed", "benchmarks.chaos.nodes:lost", 0.8),
        Part("RF-06", "a node is frozen for a minute", "benchmarks.chaos.nodes:frozen", 2),
        Part("RF-07", "a raylet is killed, its workers live on", "benchmarks.chaos.nodes:zombie", 1.5),
        Part("frozen-before", "a node is frozen when a sweep is started", "benchmarks.chaos.nodes:frozen_before", 1),
        Part("head", "the head of the cluster is killed", "benchmarks.chaos.head:head", 1.5),
        Part("head-frozen", "the head of the cluster is frozen", "benchmarks.chaos.head:head_frozen", 2.5),
        Part("RF-03", "killed at every named point, the same is committed", "benchmarks.chaos.crash_points:figures", 9.5),
        Part("RF-04", "a writer of the ledger is killed 60 times", "benchmarks.chaos.kill_writers:figures", 0.3, daily=True),
        Part("RF-14", "the disk is full at random moments", "benchmarks.chaos.disk:figures", 7.5),
        Part("RF-15", "flipped bits and cut files are noticed, never used", "benchmarks.chaos.corruption:figures", 0.8),
        Part("RF-18", "a finished grid of 1000 trials, submitted again", "benchmarks.chaos.resubmit:figures", 0.6, daily=True),
        Part("RF-19", "the wall clock jumps by a day", "benchmarks.chaos.clocks:figures", 0.4),
        Part("RF-08", "three kinds of hanging trials", "benchmarks.chaos.bad_plugins:hangs", 0.6, daily=True),
        Part("RF-09", "twelve kinds of bad plugins among good trials", "benchmarks.chaos.bad_plugins:mixed", 0.5, daily=True),
        Part("RF-10", "a poisonous trial before every good one", "benchmarks.chaos.bad_plugins:poison", 0.6),
        Part("RF-11", "a hundred trials that leave everything behind", "benchmarks.chaos.leaks:leaks", 0.9),
        Part("RF-12", "MLflow is away for a whole grid", "benchmarks.chaos.mlflow_away:away", 4),
        Part("RF-13", "MLflow and its uploader are killed in the upload, five times each", "benchmarks.chaos.mlflow_away:killed", 2),
        Part("RF-16", "NaN at a known step", "benchmarks.chaos.bad_plugins:not_a_number", 0.4, daily=True),
        Part("RF-17", "trials that want too much memory", "benchmarks.chaos.leaks:memory", 0.4),
        Part("RF-20", "other code on a node, an edit, an upgrade: refused", "benchmarks.chaos.skew:figures", 1.5),
        Part("RF-21", "Ctrl-C at twenty moments, once and twice", "benchmarks.chaos.ctrl_c:figures", 5.5),
        Part("RF-22", "every history checked, planted faults found", "benchmarks.chaos.history:figures", 1, daily=True),
        Part("RF-23", "2,000 tiny trials under kills", "benchmarks.chaos.kill_workers:soak", 8),
        Part("RF-24", "trials per second, ours and Ray Tune's", "benchmarks.fleet.throughput:figures", 15),
        Part("BI-01", "random grids and random bytes", "benchmarks.inputs.fuzz:figures", 1, daily=True),
        Part("BI-02", "nasty grid files", "benchmarks.inputs.files:figures", 0.1, daily=True),
        Part("BI-03", "grids of 10^6 to 10^18 cells", "benchmarks.inputs.counts:figures", 0.2, daily=True),
        Part("BI-04", "a hundred typos", "benchmarks.inputs.typos:figures", 0.1, daily=True),
        Part("BI-05", "2000 bad masks and connections", "benchmarks.inputs.masks:figures", 0.4, daily=True),
        Part("BI-06", "200 hostile names", "benchmarks.inputs.names:figures", 0.2, daily=True),
        Part("SE-01", "eight hostile artifacts at every door", "benchmarks.security.hostile:figures", 0.3, daily=True),
        Part("SE-02", "what listens, and whom it answers", "benchmarks.security.doors:figures", 0.6, daily=True),
        Part("SE-03", "unlisted and altered plugins", "benchmarks.security.altered:figures", 0.4, daily=True),
        Part("SE-04", "30 secrets leave no trace", "benchmarks.security.secrets:figures", 0.6, daily=True),
        Part("SE-06", "nothing runs what a file says", "benchmarks.security.unsafe:figures", 0.1, daily=True),
        Part("SE-08", "files are private, whatever the umask", "benchmarks.security.modes:figures", 0.8, daily=True),
    ),
    "trust": (
        Part("MT-01", "A/A never reads as a difference", "benchmarks.trust.verdicts:no_difference", 5),
        Part("MT-02", "planted 1.10x, 0.90x and 2.0x are found", "benchmarks.trust.verdicts:planted", 8),
        Part("MT-03", "intervals cover the planted ratio", "benchmarks.trust.verdicts:coverage", 5),
        Part("MT-04", "nothing false is trusted beside two CPU hogs", "benchmarks.trust.verdicts:hogs", 3),
        Part("MT-05", "the seven liars are caught by name", "benchmarks.trust.liars:figures", 1, daily=True),
        Part("MT-06", "own counts against loops over every connection", "benchmarks.trust.counts:figures", 0.5, daily=True),
        Part("MT-07", "peak memory of known transients", "benchmarks.trust.memory:figures", 0.3, daily=True),
        Part("MT-08", "every verdict again from its raw samples", "benchmarks.trust.again:figures", 2.5, daily=True),
        Part("MT-09", "the correctness gate catches planted errors", "benchmarks.trust.gate:figures", 0.5, daily=True),
        Part("MT-10", "two processes, one seed, the same bits", "benchmarks.trust.twice:figures", 0.5),
        Part("MT-11", "test set, seeds and budgets", "benchmarks.trust.rules:figures", 0.3, daily=True),
        Part("MT-12", "seconds per cell, and what is not samples", "benchmarks.trust.overhead:figures", 2, daily=True),
        Part("accuracy", "coverage of the accuracy intervals", "benchmarks.trust.coverage:figures", 0.7),
    ),
    "ops": tuple(Part(case.id, case.title, "benchmarks.ops.command:case_part", case.minutes) for case in CASES.values()),
    "updates": (
        *(
            Part(
                f"{rewirer}/{layer}",
                f"an update of {rewirer} on {layer}, in training steps",
                "benchmarks.updates.cost:figures",
                1.6 if layers == _DENSE else 0.4,
            )
            for rewirer, layers in REWIRERS.items()
            for layer in layers
        ),
        *(
            Part(f"{pruner}/masked", f"a pruning by {pruner}, in training steps", "benchmarks.updates.pruning:figures", 0.4)
            for pruner in PRUNERS
        ),
    ),
    "gpu": (
        Part("checks", "the Triton kernels against float64", "benchmarks.gpu.checks:figures", 1),
        Part("rates", "what this GPU can do at best", "benchmarks.gpu.rates:figures", 0.5),
        *(Part(name, CASES[name].title, "benchmarks.gpu.case:figures", 1) for name in ("c64", "b64", "c256", "b1", "a", "mid")),
        Part("tiles", "the tiles that are chosen against others", "benchmarks.gpu.tiles:figures", 1.5),
    ),
}


def listing() -> str:
    """All parts, for ``--help``."""
    lines = []
    for suite, parts in SUITES.items():
        lines.append(f"  {suite} (about {max(1, round(sum(part.minutes for part in parts)))} minutes on two cores)")
        lines += [f"  {'*' if part.daily else ' '} {part.id:10} {part.title}" for part in parts]
    return "\n".join(lines)
