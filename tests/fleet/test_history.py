"""The history of a trial as JSON lines."""

from __future__ import annotations

from pathlib import Path

from sparsefleet.fleet.history import Histories, history_path, read_history


def test_events_stand_in_their_order_with_what_belongs_to_them(tmp_path: Path) -> None:
    histories = Histories(tmp_path)
    histories.write("k", "leased", 1, "left", sweep="s-1")
    histories.write("k", "progress", 1, "left", step=1)
    histories.write("k", "progress", 1, "left", step=2)  # too soon after the first
    histories.write("k", "lost", 1, "left", end="LOST", reason="no sign of life")
    with history_path(tmp_path, "k").open("a") as file:
        file.write('{"time": "cut sho')
    told = read_history(tmp_path, "k")
    assert [(line["event"], line["attempt"], line["node"]) for line in told] == [
        ("leased", 1, "left"),
        ("progress", 1, "left"),
        ("lost", 1, "left"),
    ]
    assert told[2]["reason"] == "no sign of life"
    assert all(line["time"].endswith("+00:00") for line in told)
    assert history_path(tmp_path, "k").stat().st_mode & 0o077 == 0
    assert read_history(tmp_path, "never") == []
