"""A timing that was not trusted is taken over by no other sweep."""

import pytest

from sparsefleet.fleet.untimed import untimed
from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.trial.run import run_trial

ASKED = {"level": "screen", "batch_sizes": [64], "ops": ["step"]}


@pytest.fixture
def ledger(tmp_path, digits_request):
    request = digits_request(
        layer={"name": "csr"}, density=0.2, method={"rewirer": {"name": "static"}}, train={"epochs": 1, "batch_size": 64}
    )
    record = run_trial(request).to_json()
    row = SweepTrial(
        ordinal=0,
        key=request.trial_key,
        spec_id=request.spec.spec_id,
        spec=request.spec.to_json(),
        arm="random-static",
        twin_key=None,
        rival_key=None,
        depends_on=None,
        resources={"cpus": 1},
        limits={},
        request={},
    )
    with open_ledger(tmp_path / "home") as found:
        for sweep in ("a-1", "b-2"):
            found.create_sweep(sweep, sweep[0], sweep, "", {}, [row])
        attempt = found.lease(row.key, "a-1", "here")
        assert found.commit(row.key, attempt, record)
        yield found


@pytest.mark.parametrize(("verdict", "left"), [("FASTER", 0), ("INCONCLUSIVE", 0), ("NOT_TRUSTWORTHY", 1)])
def test_only_a_trusted_timing_serves_another_sweep(ledger, verdict, left):
    (job,) = untimed(ledger, "a-1", ASKED)
    timing = {"op": "step", "level": ASKED["level"], "verdict": verdict}
    ledger.commit_timing("a-1", job.config_key, job.keys, "SUCCEEDED", [timing], samples=b"1")
    assert untimed(ledger, "a-1", ASKED) == []  # its own is there, whatever it is worth
    assert len(untimed(ledger, "a-1", ASKED, again=True)) == left
    assert len(untimed(ledger, "b-2", ASKED)) == left
    assert len(ledger.timings("b-2")) == 1 - left


def test_no_level_asks_for_no_timing(ledger):
    assert untimed(ledger, "a-1", {"level": "none"}) == []


def test_a_screening_does_not_serve_a_sweep_that_is_to_be_published(ledger):
    (job,) = untimed(ledger, "a-1", ASKED)
    timing = {"op": "step", "level": "screen", "verdict": "FASTER"}
    ledger.commit_timing("a-1", job.config_key, job.keys, "SUCCEEDED", [timing], samples=b"1")
    assert len(untimed(ledger, "b-2", {**ASKED, "level": "publish"})) == 1
    ledger.commit_timing("a-1", job.config_key, job.keys, "SUCCEEDED", [{**timing, "level": "publish"}], samples=b"1")
    assert untimed(ledger, "b-2", {**ASKED, "level": "screen"}) == []
