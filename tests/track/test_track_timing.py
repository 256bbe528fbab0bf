"""What MLflow is told of a timing."""

from __future__ import annotations

from test_track_upload import TIMING

from sparsefleet.track.timing import metrics_of, tags_of_timing

CONFIG = "timing/step-b64-float32/"
OF_THE_CLOCK = {
    "speedup_ratio",
    "vs_small_dense_ratio",
    "sparse_median_s",
    "realised_fraction",
    "of_limit_fraction",
    "breakeven_calls_count",
}


def short(timing: dict[str, object]) -> dict[str, float]:
    return {name.removeprefix(CONFIG): value for name, value in metrics_of(timing).items()}


def test_every_figure_is_a_metric() -> None:
    found = short(TIMING)
    assert set(found) >= OF_THE_CLOCK
    assert (found["speedup_ci95_low_ratio"], found["vs_small_dense_ci95_high_ratio"]) == (1.9, 0.81)
    assert (found["theoretical_speedup_ratio"], found["roofline_speedup_ratio"], found["peak_bytes"]) == (10.0, 5.0, 1000.0)
    assert (found["dense_vs_dense_ratio"], found["kept_rounds_count"], found["method_share_fraction"]) == (1.0, 10.0, 0.02)


def test_what_is_not_trustworthy_can_order_no_runs() -> None:
    doubted = {**TIMING, "verdict": "NOT_TRUSTWORTHY", "reasons": ["dense against dense reads 1.061", "drifted"]}
    assert not OF_THE_CLOCK & set(short(doubted))
    assert short(doubted)["peak_bytes"] == 1000.0
    tags = tags_of_timing(doubted)
    assert tags["sparsefleet.verdict.step-b64-float32"] == "NOT_TRUSTWORTHY"
    assert tags["sparsefleet.verdict_reasons.step-b64-float32"] == "dense against dense reads 1.061; drifted"
    assert '"fingerprint": "fp:x"' in tags["sparsefleet.timed.step-b64-float32"]
    only_rival = short({**TIMING, "rival_verdict": "NOT_TRUSTWORTHY"})
    assert "speedup_ratio" in only_rival
    assert "vs_small_dense_ratio" not in only_rival


def test_masked_has_times_and_no_ratio() -> None:
    alone = {
        **TIMING,
        "speedup": None,
        "ci95": None,
        "rival_speedup": None,
        "rival_ci95": None,
        "verdict": "NONE",
        "dense_s": {},
        "rival_s": {},
    }
    assert "sparse_median_s" in short(alone)
    assert not [name for name in short(alone) if name.startswith(("speedup", "vs_", "realised"))]
