"""The page of names, MLflow's limits, and the file names that we share with MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from PIL import Image
from track_homes import spec_of, sweep_trials

from sparsefleet.ledger.rows import SweepRow, TrialRow
from sparsefleet.track import facts, names, server, staging
from sparsefleet.track.page import render

PAGE = Path(__file__).parents[2] / "docs" / "mlflow.md"


def test_the_page_is_in_sync() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m sparsefleet.track.page docs/mlflow.md"


def test_every_name_is_on_the_page() -> None:
    page = render()
    for name, value in vars(names).items():
        if name.isupper() and name != "SCHEMA_VERSION":
            assert f"| `{value}` |" in page, f"{name} has no description"


def test_no_name_is_written_elsewhere() -> None:
    texts = {value for name, value in vars(names).items() if name.isupper() and value.startswith(("sparsefleet.", "mlflow.", "timing/"))}
    for path in Path(names.__file__).parent.glob("*.py"):
        if path.name not in ("names.py", "page.py"):
            source = path.read_text(encoding="utf-8")
            assert not [text for text in texts if f'"{text}"' in source], path


def test_pictures_are_named_as_log_image_names_them(home: Path) -> None:
    client = server.connect(server.local_uri(home))
    run = client.create_run(client.create_experiment("pictures", artifact_location=(home / "pictures").as_uri()))
    picture = Image.new("L", (40, 20))
    client.log_image(run.info.run_id, picture, key=names.IMAGE_KEY.format(layer="0.fc"), step=7, timestamp=1234)
    theirs = {path.name for path in (home / "pictures").rglob("*") if path.is_file()}
    ours = staging.picture_path(home / "ours", "k" * 64, "0.fc", 7, 1234)
    ours.parent.mkdir(parents=True)
    picture.save(ours)
    staging.write_thumbnail(ours)
    assert {_without_uuid(path.name) for path in ours.parent.iterdir()} == {_without_uuid(name) for name in theirs}
    for mine in ours.parent.iterdir():
        (same,) = (path for path in (home / "pictures").rglob(f"*{mine.suffix}"))
        with Image.open(mine) as a, Image.open(same) as b:
            assert (a.size, a.format) == (b.size, b.format)


def _without_uuid(name: str) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", name)


def test_a_trial_is_named_by_what_it_is() -> None:
    dense, sparse = (TrialRow(**vars(trial)) for trial in sweep_trials(2))
    assert facts.run_name(sparse) == f"rigl-csr-d0.1-s0-{sparse.spec_id}"
    assert facts.run_name(dense) == f"dense-dense-d1-s0-{dense.spec_id}"
    hostile = TrialRow(**{**vars(sparse), "arm": "<script>\u202e/../"})
    assert re.fullmatch(r"[A-Za-z0-9._-]+", facts.run_name(hostile))


def test_a_candidate_is_tagged_and_listed_with_its_selection() -> None:
    part = {"id": "8fa3a84904a7", "candidate": 1, "n": 3, "paths": ["optimizer.lr"]}
    request = {"tuning": {"parts": [part], "alone": False, "twin": None, "rival": None}, "data_root": "/home/someone", "code": {}}
    (row,) = (TrialRow(**{**vars(trial), "request": request}) for trial in sweep_trials(1))
    assert facts.tags_of(row, {})[names.SELECTION] == "8fa3a84904a7 2/3"
    assert staging.shown_request(row) == {"tuning": request["tuning"]}  # no path of this machine


def test_parameters_are_flat_and_dotted() -> None:
    spec = {"schema": "x", "a": {"name": "p", "params": {"k": {"kind": "cubic", "begin": 0.1}, "l": [1, 2]}}, "b": None, "c": "text"}
    assert facts.params_of(spec) == {"a": "p", "a.k": "cubic", "a.k.begin": "0.1", "a.l": "[1, 2]", "c": "text"}
    assert facts.params_of(spec_of(0, sparse=True).to_json())["optimizer.lr"] == "0.1"


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60), max_size=40),
    st.integers(100, 400),
)
def test_a_long_table_is_cut_between_lines(lines: list[str], longest: int) -> None:
    table = "\n".join(lines)
    short = facts.cut_table(table, longest)
    assert len(short) <= max(longest, 0)
    assert short == table or table.startswith(short[: short.index("\n\n… cut")])


@pytest.mark.parametrize("value", ["x" * 7000, "é" * 6000])
def test_a_long_value_says_that_it_was_cut(value: str) -> None:
    cut: Any = facts.params_of({"a": value})["a"]
    assert len(cut) <= 6000
    assert cut == value or cut.endswith("(cut)")


def test_tags_tell_where_and_how_a_trial_ran_and_how_long_it_waited() -> None:
    trial = sweep_trials(2)[1]
    lost = {
        "n": 1,
        "sweep": "q",
        "node": "a",
        "started": "2026-01-02T03:00:07.500+00:00",
        "ended": None,
        "end": "LOST",
        "reason": "node a is gone",
        "t_s": 1.0,
    }
    crashed = {
        **lost,
        "n": 2,
        "node": "b",
        "started": "2026-01-02T03:01:00.000+00:00",
        "end": "CRASHED",
        "reason": "SIGSEGV (signal 11)\nat",
    }
    row = TrialRow(**{**vars(trial), "state": "POISONED", "attempt": 2, "node": "b", "attempts": [lost, crashed]})
    owner = SweepRow("q", "q", "d", "", "DONE", "2026-01-02T03:00:00.000+00:00", None, {"bundle": {"sha256": "e" * 64}}, {})
    tags = facts.tags_of(row, {}, owner)
    assert tags[names.ATTEMPTS] == "1 LOST on a; 2 CRASHED on b"
    assert (tags[names.EXIT], tags[names.NODE]) == ("CRASHED: SIGSEGV (signal 11)", "b")
    assert (tags[names.WAIT], tags[names.BUNDLE]) == ("7.5", "e" * 64)


def test_whatever_a_plugin_calls_its_curve_mlflow_takes_it():
    from mlflow.utils.validation import _validate_metric_name

    strange = [
        "loss (%)",
        "density/conv[1]",
        "../x",
        "/x",
        "a//b",
        "",
        ".",
        "größe",
        "x" * 400,
        "[redacted: HF_TOKEN]",
        "a\nb",
        "a b",
        "density/0.fc",
    ]
    found = [names.CURVE.format(name=facts.metric_name(name)) for name in strange]
    for name in found:
        _validate_metric_name(name)
    assert len(set(found)) == len(strange)
    assert found[-2:] == ["curve/a b", "curve/density/0.fc"]
