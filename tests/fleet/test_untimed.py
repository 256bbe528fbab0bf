"""What is still to be timed: a timing serves another sweep only if it is trusted and of this machine."""

import pytest

from sparsefleet.fleet.untimed import lacks_timings, untimed
from sparsefleet.ledger import SweepTrial
from sparsefleet.ledger.rows import NOT_TAKEN
from sparsefleet.measure.config import twin_of
from sparsefleet.trial.spec import TrialSpec

ASKED = {"level": "screen", "batch_sizes": [64], "ops": ["step"]}
HERE = "fp:here"
TIMING = {"op": "step", "level": "screen", "verdict": "FASTER", "fingerprint": HERE}


def commit(ledger, state="SUCCEEDED", **changes):
    (job,) = untimed(ledger, "a-1", ASKED, again=True)
    timings = [TIMING | changes] if state == "SUCCEEDED" else []
    ledger.commit_timing("a-1", job.config_key, job.keys, state, timings, samples=b"1" if timings else None)


def left(ledger, sweep, **options):
    return len(untimed(ledger, sweep, options.pop("asked", ASKED), **options))


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({}, 0),
        ({"verdict": "INCONCLUSIVE"}, 0),
        ({"verdict": "NONE", "rival_verdict": "SLOWER"}, 0),
        ({"verdict": "NOT_TRUSTWORTHY"}, 1),
        ({"rival_verdict": "NOT_TRUSTWORTHY"}, 1),
        ({"rival_vs_dense_verdict": "NOT_TRUSTWORTHY"}, 1),
        ({"verdict": "NONE", "reasons": ["dense against dense reads 1.061"]}, 1),
    ],
)
def test_only_a_timing_that_is_trusted_in_every_figure_serves_another_sweep(ledger, changes, n):
    commit(ledger, **changes)
    assert left(ledger, "a-1") == 0  # its own is there, whatever it is worth
    assert left(ledger, "a-1", again=True) == n
    assert left(ledger, "b-2", machine=HERE) == n
    assert len(ledger.timings("b-2")) == 1 - n


@pytest.mark.parametrize("machine", ["fp:other", None])
def test_a_timing_of_another_machine_serves_no_other_sweep(ledger, machine):
    commit(ledger)
    assert left(ledger, "b-2", machine=machine) == 1
    assert ledger.timings("b-2") == []
    assert left(ledger, "a-1", machine=machine) == 0


@pytest.mark.parametrize(
    ("state", "own", "again", "other"),
    [
        ("TIMEOUT", 1, 1, 1),
        ("CRASHED", 1, 1, 1),
        ("INFRA_FAILED", 1, 1, 1),
        ("OOM", 0, 1, 1),
        ("PLUGIN_ERROR", 0, 1, 1),
        ("INCORRECT", 0, 0, 0),
    ],
)
def test_ends_without_a_timing(ledger, state, own, again, other):
    """What says nothing of the configuration is tried again; what lies at this moment's memory is asked again on request, and by others."""
    commit(ledger, state)
    assert lacks_timings(ledger, "a-1") == (state in NOT_TAKEN)
    assert (left(ledger, "a-1"), left(ledger, "a-1", again=True), left(ledger, "b-2", machine=HERE)) == (own, again, other)


def test_no_level_asks_for_no_timing(ledger):
    assert untimed(ledger, "a-1", {"level": "none"}) == []


def test_a_screening_does_not_serve_a_sweep_that_is_to_be_published(ledger):
    commit(ledger)
    assert left(ledger, "b-2", asked={**ASKED, "level": "publish"}, machine=HERE) == 1
    (row,) = ledger.timings("a-1")
    ledger.commit_timing("a-1", row.config_key, row.keys, "SUCCEEDED", [TIMING | {"level": "publish"}], samples=b"1")
    assert left(ledger, "b-2", machine=HERE) == 0


def with_twin(ledger, name):
    """The sweep's trial beside a dense twin of the code ``name``, which has ended."""
    (sparse,) = (row for row in ledger.trials("a-1", with_record=False) if row.arm != "dense")
    asked = {field: getattr(sparse, field) for field in SweepTrial.__dataclass_fields__} | {"ordinal": 1, "twin_key": name * 64}
    spec = twin_of(TrialSpec.model_validate(sparse.spec))
    ledger.create_sweep("a-1", "a", "a-1", "", {}, [SweepTrial(0, name * 64, spec.spec_id, spec.to_json(), "dense"), SweepTrial(**asked)])
    attempt = ledger.lease(name * 64, "a-1", "here")
    if attempt:
        counts = {"layers": [{"execution": "dense"}]}
        assert ledger.commit(name * 64, attempt, {"state": "SUCCEEDED", "reason": None, "code": {"dense layer": name}, "counts": counts})


def test_a_timing_beside_a_twin_that_was_replaced_stands_for_nothing_until_the_twin_is_back(ledger):
    with_twin(ledger, "1")
    commit(ledger)
    (old,) = ledger.timings("a-1")
    with_twin(ledger, "2")
    assert left(ledger, "a-1") == 1
    assert ledger.timings("a-1") == []
    (item,) = (item for item in ledger.outbox() if item.kind == "timing")
    assert item.payload == {"config_key": old.config_key, "former": old.keys}
    commit(ledger)
    (new,) = ledger.timings("a-1")
    assert (new.keys, new.config_key == old.config_key) == (old.keys, False)
    with_twin(ledger, "1")
    assert left(ledger, "a-1") == 0
    assert ledger.timings("a-1") == [old]


def test_a_timing_that_the_fleet_lost_of_a_trial_that_is_asked_for_no_more_is_not_lacking(ledger):
    with_twin(ledger, "1")
    commit(ledger, "INFRA_FAILED")
    with_twin(ledger, "2")
    assert lacks_timings(ledger, "a-1")  # its trial is asked for
    assert left(ledger, "a-1") == 1
    assert not lacks_timings(ledger, "a-1")
