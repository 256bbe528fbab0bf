from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Run
from benchmarks.ops import cases, command
from benchmarks.ops.cases import CASES, Case, Shape, Target, free_case, peer_called
from benchmarks.ops.measure import How, break_even, fastest_dense, refusal
from benchmarks.ops.table import figures, table

WITHOUT_SERVICES = """
import runpy, sys
sys.modules["ray"] = sys.modules["mlflow"] = None
sys.argv = ["benchmarks", "ops", *sys.argv[1:]]
runpy.run_module("benchmarks", run_name="__main__")
"""


def op(ratio: float | None, ms: float = 10.0) -> dict[str, Any]:
    own = {"ratio": ratio, "ci": ratio and [0.9 * ratio, 1.1 * ratio], "verdict": "FASTER", "reasons": []}
    return {"ms": ms, "ours_ms": 1.0, "ours_row_major_ms": 2.0, **own, **{f"row_major_{name}": value for name, value in own.items()}}


def peer(ratio: float | None, **ops: dict[str, Any]) -> dict[str, Any]:
    every = {name: op(ratio) for name in ("forward", "backward", "forward+backward", "step")} | ops
    times = {f"{short}_ms": 10.0 for short in ("fwd", "bwd", "fwd_bwd", "step")}
    main = every["forward+backward"]
    return {**times, "peak_bytes": 3000, "ratio_vs_ours": main["ratio"], "ci": main["ci"], "verdict": "FASTER", "reasons": [], "ops": every}


def found(case: str, peers: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    times = {f"{short}_ms": 1.0 for short in ("fwd", "bwd", "fwd_bwd", "step")}
    fair = {"verdict": "FASTER", "reasons": []}
    limit = {
        "forward": {"limit_ms": 0.6, "bound": "gather", "percent": 60.0, **fair},
        "backward": {"limit_ms": 0.4, "bound": "dram", "percent": 40.0, **fair},
    }
    ours = {**times, "peak_bytes": 100, "limit": limit, "row_major": times}
    about = {"case": case, "title": CASES[case].title, "device": device, "threads": 2, "quick": False}
    return {**about, "shape": [4, 4], "density": 0.01, "nnz": 16, "ours": ours, "peers": peers}


def judged(case: str, result: dict[str, Any]) -> dict[str, tuple[float | None, str]]:
    return {figure.what.rpartition(": ")[0]: (figure.value, figure.word) for figure in figures(CASES[case], result)}


def test_targets_are_kept_or_missed_by_the_measured_values() -> None:
    said = judged("b64", found("b64", {cases.DENSE: peer(30.0), cases.SPMM: peer(44.0), cases.TORCH_COO: peer(9.0)}))
    assert said["times faster than dense, forward + backward"] == (30.0, "kept")
    assert said["times faster than torch_sparse.spmm, forward + backward"] == (44.0, "MISSED")
    assert said["times faster than SparseTensor @, forward + backward"] == (None, "not run")
    assert said["times faster than torch-coo, forward + backward"] == (9.0, "told")
    assert said["times less peak memory than dense"] == (30.0, "kept")
    assert said["of this machine's limit, forward"] == (60.0, "kept")
    assert said["of this machine's limit, backward"] == (40.0, "MISSED")
    gpu = judged("b64", found("b64", {cases.DENSE: peer(30.0)}, "cuda"))
    assert gpu["of this machine's limit, forward"] == (60.0, "kept")
    assert gpu["times faster than dense, forward + backward"] == (30.0, "told")


NOISE = {"verdict": "NOT_TRUSTWORTHY", "reasons": ["0 of 3 rounds kept", "drifted by +9.0 %"]}


def test_what_is_not_trustworthy_keeps_and_misses_nothing() -> None:
    main, both = "forward+backward", "not trustworthy: 0 of 3 rounds kept; drifted by +9.0 %"
    noisy = {
        cases.DENSE: peer(30.0, **{main: op(30.0) | NOISE}),
        cases.SPMM: peer(44.0, **{main: op(44.0) | NOISE}),
        cases.TORCH_SDDMM: peer(2.0, forward=op(2.0) | NOISE),
    }
    result = found("b64", noisy)
    result["ours"]["limit"]["backward"] |= NOISE
    made = {figure.what.rpartition(": ")[0]: figure for figure in figures(CASES["b64"], result)}
    said = {what: (figure.word, figure.kept, figure.doubt) for what, figure in made.items()}
    assert said["times faster than dense, forward + backward"] == ("UNPROVEN", None, both)
    assert said["times faster than torch_sparse.spmm, forward + backward"] == ("UNPROVEN", None, both)
    assert said["times faster than torch-csr-sddmm, forward + backward"] == ("kept", True, "")  # only its forward timing is in doubt
    assert said["times less peak memory than dense"] == ("kept", True, "")  # no clock was involved
    assert said["of this machine's limit, forward"] == ("kept", True, "")
    assert said["of this machine's limit, backward"] == ("UNPROVEN", None, both)
    assert "target >= 28 times  UNPROVEN  (not trustworthy: 0 of 3" in made["times faster than dense, forward + backward"].line()


def test_the_row_major_ratio_has_a_verdict_of_its_own() -> None:
    noisy = {f"row_major_{name}": value for name, value in NOISE.items()}
    rows = {cases.SPARSEPROP: peer(5.0), cases.SPARSEPROP_MODULE: peer(5.0, **{"forward+backward": op(5.0) | noisy})}
    assert [figure.word for figure in figures(CASES["sparseprop"], found("sparseprop", rows)) if figure.target] == ["kept", "UNPROVEN"]


def test_a_quick_run_keeps_and_misses_nothing() -> None:
    made = figures(CASES["a"], found("a", {cases.DENSE: peer(30.0), cases.TORCH_COO: peer(2.0)}) | {"quick": True})
    assert [(figure.word, figure.doubt) for figure in made] == [("UNPROVEN", "quick run"), ("told", "quick run")]


def test_dense_is_the_faster_of_plain_and_compiled() -> None:
    both = {cases.DENSE: peer(30.0), cases.DENSE_COMPILED: peer(27.0)}
    assert judged("b64", found("b64", both))["times faster than dense, forward + backward"] == (27.0, "MISSED")
    both[cases.DENSE_COMPILED] = {"not_run": "it cannot"}
    assert judged("b64", found("b64", both))["times faster than dense, forward + backward"] == (30.0, "kept")
    assert fastest_dense({"peers": {cases.DENSE: {"not_run": "needs 30 GB"}}}) is None


def test_forward_and_row_major_targets_take_their_own_ratios() -> None:
    assert judged("b1", found("b1", {cases.DENSE: peer(41.0, forward=op(24.0))})) == {
        "times faster than dense, forward": (24.0, "MISSED"),
        "times faster than dense, forward + backward": (41.0, "kept"),
    }
    rows = {cases.SPARSEPROP: peer(2.9), cases.SPARSEPROP_MODULE: peer(5.0, **{"forward+backward": op(5.0) | {"row_major_ratio": 1.9}})}
    said = judged("sparseprop", found("sparseprop", rows))
    assert said["times faster than sparseprop, forward + backward"] == (2.9, "MISSED")
    assert said["times faster than sparseprop-module, forward + backward, transposes in and out"] == (1.9, "MISSED")


def test_a_wrong_peer_is_broken_and_one_that_could_not_run_is_not() -> None:
    made = figures(CASES["a"], found("a", {cases.DENSE: {"not_run": "needs 30 GB"}, cases.TORCH_CSR: {"wrong": "off"}}))
    assert [(figure.word, figure.note) for figure in made] == [("not run", "needs 30 GB"), ("BROKEN", "off")]
    text = table(found("a", {cases.DENSE: {"not_run": "needs 30 GB"}, cases.TORCH_CSR: {"wrong": "off"}, cases.MASKED: peer(None)}))
    assert "not run: needs 30 GB" in text
    assert "WRONG: off" in text


@pytest.mark.parametrize(
    ("ratios", "percent", "note", "word"),
    [
        ({0.2: 0.5, 0.1: 1.0, 0.05: 2.0}, 90.0, "", "MISSED"),
        ({0.2: 0.5, 0.1: 2.0}, 100 * (1 - 0.02**0.5), "", "MISSED"),  # halfway in log density
        ({0.4: 0.5, 0.1: 2.0}, 80.0, "", "kept"),
        ({0.4: 2.0, 0.2: 4.0, 0.1: 8.0}, 60.0, "at most: ours is faster at every sparsity that was measured", "kept"),
        ({0.1: 2.0}, 90.0, "at most: ours is faster at every sparsity that was measured", "MISSED"),
        ({0.2: 0.25, 0.1: 0.5}, 90.0, "at least: dense is faster at every sparsity that was measured", "MISSED"),
        ({0.4: 0.25, 0.2: 0.5}, 80.0, "at least: dense is faster at every sparsity that was measured", "UNPROVEN"),
        ({0.4: 0.5, 0.2: 2.0, 0.1: 0.5}, None, "the measured speed-ups cross 1 more than once", "not run"),
        ({0.2: 2.0, 0.1: 0.5}, None, "slower at density 0.1 and faster at 0.2, which no break-even explains", "not run"),
        ({}, None, "dense was measured at no sparsity", "not run"),
    ],
)
def test_break_even_by_hand(ratios: dict[float, float], percent: float | None, note: str, word: str) -> None:
    got = break_even([{"density": density, "peers": {cases.DENSE: peer(ratio)}} for density, ratio in ratios.items()])
    assert (got["percent"], got["note"], got["doubts"]) == (percent and pytest.approx(percent), note, [])
    case = Case("mine", CASES["mid"].shapes, 64, CASES["mid"].targets)  # at most 85 %
    (figure,) = figures(case, found("mid", {}) | {"break_even": got})
    assert (figure.value, figure.note, figure.word) == (got["percent"], note, word)


def test_a_break_even_rests_on_the_timings_at_every_sparsity() -> None:
    noisy = peer(0.5, **{"forward+backward": op(0.5) | NOISE})
    got = break_even([{"density": 0.4, "peers": {cases.DENSE: noisy}}, {"density": 0.1, "peers": {cases.DENSE: peer(2.0)}}])
    assert got["doubts"] == ["density 0.4: not trustworthy: 0 of 3 rounds kept; drifted by +9.0 %"]
    (figure,) = figures(Case("mine", CASES["mid"].shapes, 64, CASES["mid"].targets), found("mid", {}) | {"break_even": got})
    assert (figure.word, figure.doubt) == ("UNPROVEN", got["doubts"][0])


def test_what_does_not_fit_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    (widest,) = CASES["c64"].shapes
    monkeypatch.setattr("sparsefleet.measure.run.memory_free", lambda device: 20_000_000_000)
    assert refusal(cases.DENSE, widest, 64, "cpu") == "needs 30 GB, 20 GB are free"
    assert refusal("ours", widest, 64, "cpu") == ""
    assert refusal(cases.DENSE_TF32, widest, 64, "cpu") == "only on a GPU"
    assert refusal(cases.SPARSEPROP, Shape(768, 3072, 0.02), 2048, "cuda") == "only on a CPU"


def test_names_of_peers_and_cases() -> None:
    assert [peer_called(text) for text in ("sparsetensor", "torch-sparse.spmm", "TORCH_CSR_SDDMM", "dense", "densely")] == [
        cases.SPARSE_TENSOR,
        cases.SPMM,
        cases.TORCH_SDDMM,
        cases.DENSE,
        None,
    ]
    assert cases.SPARSE_TENSOR_NEW not in How().peers_of(CASES["b64"])
    assert all(target.against in (*cases.NAMES, "") for case in CASES.values() for target in case.targets)
    assert str(free_case(10, 20, 0.5, 4).shapes[0]) == "10→20, 50 %"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--case", "b65"], "no case is called 'b65'; there are a, b1, b64"),
        (["--peers", "dense,cupy"], "no peer is called 'cupy'; there are dense"),
        (["--in", "4", "--out", "4"], "takes --in, --out, --density and --batch together"),
        (["--in", "4", "--out", "4", "--density", "1.5", "--batch", "1"], "the density in (0, 1], got 4, 4, 1.5, 1"),
        (["--in", "64", "--out", "64", "--density", "nan", "--batch", "3"], "the density in (0, 1], got 64, 64, nan, 3"),
        (["--in", "4", "--out", "0", "--density", "0.5", "--batch", "1"], "sizes must be positive"),
        (["--results", "/proc/nope"], "--results: '/proc/nope' cannot be written"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
    ],
)
def test_bad_usage_says_what_there_is(given: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.asked(given)
    assert end.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.slow
def test_a_layer_of_ones_own_from_the_command_line_without_ray_and_mlflow(tmp_path: Path) -> None:
    size = ["--in", "64", "--out", "48", "--density", "0.25", "--batch", "8"]
    given = [*size, "--peers", "dense,torch-csr-sddmm,dense-tf32", "--threads", "1", "--quick", "--json", "--results", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", WITHOUT_SERVICES, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["case"], body["threads"], body["nnz"]) == ("64x48-0.25-8", 1, 768)
    assert list(body["peers"]) == ["dense", "dense-tf32", "torch-csr-sddmm"]
    assert body["peers"]["dense-tf32"]["not_run"] == "only on a GPU"
    for side in (body["ours"], body["peers"]["dense"]):
        assert min(side[f"{short}_ms"] for short in ("fwd", "bwd", "step")) > 0
        assert side["peak_bytes"] >= 0
    assert body["peers"]["dense"].keys() >= {"ratio_vs_ours", "ci", "verdict"}
    assert body["ours"]["limit"]["forward"]["percent"] > 0
    (kept,) = tmp_path.glob("ops-*.json")
    assert {row["id"] for row in json.loads(kept.read_text())["figures"]} == {"64x48-0.25-8"}


@pytest.mark.slow
def test_a_case_of_several_shapes_as_a_part_of_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shape(64, 48, 0.5), Shape(64, 48, 0.25)
    case = Case("tiny", shapes, 8, (Target("break_even", cases.DENSE, 85.0),), threads=1, peers=(cases.DENSE,))
    monkeypatch.setitem(CASES, "tiny", case)
    run = Run("tiny", quick=True)
    made = command.case_part(run)
    assert [(point["nnz"], list(point["peers"])) for point in run.raw["points"]] == [(1536, ["dense"]), (768, ["dense"])]
    assert run.raw["break_even"] == break_even(run.raw["points"])
    assert [figure.unit for figure in made] == ["%", "times", "times"]
    assert made[0].value == run.raw["break_even"]["percent"]
    assert "64→48, density 0.25" in table(run.raw)
