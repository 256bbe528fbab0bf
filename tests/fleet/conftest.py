"""Two sweeps in one ledger that show the same trained net, not timed yet."""

import pytest

from sparsefleet.ledger import SweepTrial, open_ledger
from sparsefleet.trial.identity import core_digest
from sparsefleet.trial.run import run_trial


@pytest.fixture
def ledger(tmp_path, digits_request):
    request = digits_request(
        layer={"name": "csr"}, density=0.2, method={"rewirer": {"name": "static"}}, train={"epochs": 1, "batch_size": 64}
    )
    record = {**run_trial(request).to_json(), "artifacts": [{"name": "model.safetensors", "sha256": "a" * 64, "bytes": 1}]}
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
        request={"code": {"core": core_digest()}},
    )
    with open_ledger(tmp_path / "home") as found:
        for sweep in ("a-1", "b-2"):
            found.create_sweep(sweep, sweep[0], sweep, "", {}, [row])
        attempt = found.lease(row.key, "a-1", "here")
        assert found.commit(row.key, attempt, record)
        yield found


@pytest.fixture
def wire(monkeypatch):
    """A function that makes a pool of these nodes whose supervisors do what the test says."""
    from fleet_wire import Wire

    from sparsefleet.fleet import pool

    def make(*nodes, limit=None):
        made = Wire(*nodes, limit=limit)
        monkeypatch.setattr(pool, "ray", made)
        monkeypatch.setattr(pool, "time", made)
        return made

    return make
