from __future__ import annotations

import subprocess
import sys

import pytest

from sparsefleet.measure.config import MeasureJob, Op, execution_of, groups
from sparsefleet.trial.spec import Adam, PluginRef, Sgd, Train

from .trained import Row, record_of, row_of, spec_of

DENSE = row_of(spec_of("dense", density=1.0))


def keys(rows: list[Row], **options: object) -> list[tuple[str, ...]]:
    return [job.keys for job in groups(rows, [32], ["forward"], **options)]  # type: ignore[arg-type]


def test_seeds_share_a_timing_and_the_lowest_is_timed() -> None:
    rows = [row_of(spec_of(seed=seed), DENSE.key) for seed in (7, 2, 5)]
    (job,) = groups([DENSE, *rows], [32], ["forward"])
    assert job.keys == tuple(sorted(row.key for row in rows))
    assert job.representative == rows[1].key
    assert job.spec.seed == 2
    assert job.twin.layer.name == "dense"
    assert MeasureJob.model_validate(job.model_dump(mode="json")) == job


def test_one_job_per_op_and_batch_size() -> None:
    jobs = groups([row_of(spec_of(), DENSE.key)], [1, 32, 256])
    assert [(job.op, job.batch_size) for job in jobs] == [(op, n) for op in ("forward", "step") for n in (1, 32, 256)]
    assert len({job.config_key for job in jobs}) == 6


def test_dense_twins_and_masked_get_no_job_and_masked_never_a_speedup() -> None:
    masked = row_of(spec_of("masked"), DENSE.key)
    assert keys([DENSE, masked]) == []
    (job,) = groups([DENSE, masked], [32], ["forward"], also_masked=True)
    assert not job.versus_dense


def test_dense_storage_with_another_architecture_is_timed() -> None:
    winners = row_of(spec_of("dense", density=1.0, activation=PluginRef(name="k-winners")), DENSE.key)
    narrow = row_of(spec_of("dense", density=1.0, narrow_to_density=0.1), DENSE.key)
    assert keys([DENSE, winners, narrow]) == [(winners.key,), (narrow.key,)]


def test_methods_do_not_share_a_timing_and_seeds_do_however_their_connections_fell() -> None:
    a, b = spec_of(rewirer="static"), spec_of(rewirer="set")
    assert len(keys([row_of(a), row_of(b)])) == 2
    assert len(keys([row_of(spec_of()), uneven(1.5)])) == 1


def uneven(cv: float) -> Row:
    record = record_of(spec_of(seed=1))
    record["counts"]["layers"][0]["fan_out_cv"] = cv
    return Row("uneven", spec_of(seed=1).to_json(), record)


@pytest.mark.parametrize("other", [
    row_of(spec_of(seed=1, activation=PluginRef(name="k-winners"))),
    row_of(spec_of(seed=1, train=Train(epochs=1, precision="bf16"))),
    row_of(spec_of(seed=1), device={"device": "cpu", "class": "cpu:test", "threads": 2}),
    row_of(spec_of(seed=1), device={"device": "cpu", "class": "cpu:other", "threads": 1}),
    row_of(spec_of(seed=1), code={"core": "changed"}),
])  # fmt: skip
def test_what_decides_the_time_separates(other: Row) -> None:
    assert len(keys([row_of(spec_of()), other])) == 2


CODE = {
    "core": "c",
    "torch": "2.15",
    **{f"{family}/x": family for family in ("dataset", "model", "activation", "layer", "pruner", "rewirer", "connectivity")},
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("op", ["forward", "step"])
def test_every_plugin_that_takes_part_decides_the_time(name: str, op: Op) -> None:
    """A rewirer is timed within a step, and decides where the connections of a forward pass lie; so does a connectivity or a pruner."""
    one, same, other = (row_of(spec_of(seed=seed), code=code) for seed, code in enumerate((CODE, CODE, {**CODE, name: "changed"})))
    assert len(groups([one, same], [32], [op])) == 1
    assert len(groups([one, other], [32], [op])) == 2


def test_the_code_of_the_dense_twin_decides_the_time() -> None:
    """Its activation may be another plugin than that of the sparse net."""
    twins = [row_of(spec_of("dense", density=1.0), code={"core": "c", "activation/relu": digest}) for digest in ("old", "new")]
    old, new = (groups([twin, row_of(spec_of(), twin.key)], [32], ["step"]) for twin in twins)
    assert old[0].config_key != new[0].config_key


@pytest.mark.parametrize("other", [
    row_of(spec_of(seed=1), nnz=805),
    row_of(spec_of(seed=1, optimizer=Sgd(lr=0.5, momentum=0.5))),
    row_of(spec_of(seed=1, train=Train(epochs=9))),
    uneven(0.31),
])  # fmt: skip
def test_what_does_not_decide_the_time_does_not_separate(other: Row) -> None:
    assert len(keys([row_of(spec_of()), other])) == 1


def test_the_optimizers_kind_separates_steps_only() -> None:
    rows = [row_of(spec_of()), row_of(spec_of(seed=1, optimizer=Adam(lr=0.1)))]
    assert len(groups(rows, [32], ["forward"])) == 1
    assert len(groups(rows, [32], ["step"])) == 2


def test_failed_trials_are_left_out() -> None:
    assert keys([row_of(spec_of(), state="DIVERGED"), Row("x", spec_of().to_json(), None)]) == []


def test_execution_of_mixed_networks() -> None:
    layers = [{"execution": name} for name in ("dense", "sparse_csr", "dense")]
    assert execution_of({"counts": {"layers": layers}}) == "sparse_csr"
    assert execution_of({"counts": {"layers": layers[:1]}}) == "dense"


def test_grouping_needs_no_torch() -> None:
    code = "import sys, sparsefleet.measure.config; assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_harness_is_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsefleet.measure import config

    (before,) = groups([row_of(spec_of())], [8], ["step"])
    monkeypatch.setattr(config, "module_digest", lambda module: "changed")
    (after,) = groups([row_of(spec_of())], [8], ["step"])
    assert before.config_key != after.config_key
