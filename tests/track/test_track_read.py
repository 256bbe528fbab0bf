"""Rows from MLflow alone equal rows from the ledger."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_track_upload import SAMPLES, full_home
from track_homes import commit, enter_sweep
from track_state import trial_runs

from sparsefleet.errors import BackendUnreachable, IntegrityError, UserError
from sparsefleet.ledger import open_ledger, read_ledger
from sparsefleet.report import compare
from sparsefleet.track import names, read, server
from sparsefleet.track.upload import Following, drain
from sparsefleet.trial.record import Timing

SWEEP = "quick-12345678"


def uploaded(home: Path) -> str:
    uri = server.local_uri(home)
    assert drain(home, uri, Following()) == 0
    return uri


def test_rows_and_the_table_are_those_of_the_ledger(home: Path) -> None:
    full_home(home)
    trials, timings = read.rows("quick", uploaded(home))
    with read_ledger(home) as ledger:
        of_ledger = [replace(row, resources={}, limits={}, request={}) for row in ledger.trials(SWEEP)]
        times = ledger.timings(SWEEP)
    assert trials == of_ledger
    assert timings == times
    assert compare.rows(trials, timings) == compare.rows(of_ledger, times)
    Timing.model_validate(times[0].timings[0])  # the whole shape went through
    assert read.raw_samples("quick", server.local_uri(home), times[0].samples_ref or "") == SAMPLES


def test_trials_without_a_record_have_the_ledgers_state(home: Path) -> None:
    trials = enter_sweep(home, 4)
    commit(home, SWEEP, trials[0])
    with open_ledger(home) as ledger:
        ledger.lease(trials[1].key, SWEEP, "here")
        ledger.end_attempt(trials[1].key, 1, "TIMEOUT", "60 s", requeue=False, final_state="TIMEOUT")
        ledger.set_sweep_state(SWEEP, "CANCELLED")
        wanted = [(row.state, row.reason, row.attempts) for row in ledger.trials(SWEEP)]
    rows, _ = read.rows(SWEEP, uploaded(home))
    assert [(row.state, row.reason, row.attempts) for row in rows] == wanted
    assert [row.state for row in rows] == ["SUCCEEDED", "TIMEOUT", "CANCELLED", "CANCELLED"]


def test_a_sweep_that_shares_trials_reads_them_too(home: Path) -> None:
    full_home(home)
    enter_sweep(home, 2, sweep="other-87654321", name="other")
    with open_ledger(home) as ledger:
        ledger.set_sweep_state("other-87654321", "DONE")
    rows, _ = read.rows("other", uploaded(home))
    assert [row.state for row in rows] == ["SUCCEEDED", "SUCCEEDED"]
    assert all(row.record for row in rows)


def test_of_a_trial_with_runs_in_two_experiments_the_newest_attempt_is_read(home: Path) -> None:
    """As after an upload that was cut off, or one by an older version."""
    full_home(home)
    enter_sweep(home, 2, sweep="other-87654321", name="other")
    uri = uploaded(home)
    client = server.connect(uri)
    run = next(run for run in trial_runs(client) if run.data.metrics[names.ACCURACY] == 0.901)
    elsewhere = client.get_experiment_by_name("other").experiment_id
    newer = client.create_run(elsewhere, 0, {**run.data.tags, names.ATTEMPT: "2"}).info.run_id
    with tempfile.TemporaryDirectory() as folder:
        client.log_artifacts(newer, client.download_artifacts(run.info.run_id, "", folder))
    client.log_text(newer, '{"state": "DIVERGED", "attempt": 2}', names.TRIAL_JSON)
    client.set_terminated(newer, "FINISHED")
    rows, _ = read.rows("quick", uri)
    assert [(row.state, row.attempt) for row in rows] == [("SUCCEEDED", 1), ("DIVERGED", 2)]


def test_an_altered_timing_is_refused(home: Path) -> None:
    full_home(home)
    uri = uploaded(home)
    client = server.connect(uri)
    run = read.find_sweep(client, "quick")
    name = names.TIMING_JSON.format(config_key="c" * 64)
    text = Path(client.download_artifacts(run.info.run_id, name, str(home))).read_text()
    assert '"speedup": 2.0' in text
    client.log_text(run.info.run_id, text.replace('"speedup": 2.0', '"speedup": 3.0'), name)
    with pytest.raises(IntegrityError, match=r"timings/c+\.json"):
        read.rows("quick", uri)


def test_an_altered_record_is_refused(home: Path) -> None:
    full_home(home)
    uri = uploaded(home)
    client = server.connect(uri)
    client.log_text(trial_runs(client)[0].info.run_id, "{}", names.RECORD_JSON)
    with pytest.raises(IntegrityError, match=r"record\.json"):
        read.rows("quick", uri)


def test_unknown_sweeps_and_servers_are_said(home: Path) -> None:
    full_home(home)
    uri = uploaded(home)
    with pytest.raises(UserError, match="unknown sweep 'wide'") as unknown:
        read.rows("wide", uri)
    assert SWEEP in str(unknown.value)
    with pytest.raises(UserError, match="no MLflow database"):
        read.rows("quick", server.local_uri(home / "elsewhere"))
    with pytest.raises(BackendUnreachable, match="did not answer") as away:
        read.rows("quick", "http://someone:secret@127.0.0.1:9")
    assert "secret" not in str(away.value)
