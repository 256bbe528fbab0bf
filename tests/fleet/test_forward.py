"""Forwarding of what a trial prints: in pieces, within bounds, and in whole letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefleet.fleet import forward
from sparsefleet.fleet.forward import CUT, Printed, append
from sparsefleet.fleet.logs import home_id, is_home


def test_what_is_printed_arrives_once_and_in_order(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "home" / "here"
    printed = Printed(there)
    assert list(printed.new(last=True)) == []
    for text in ("one\n", "zwei ü\n"):
        with there.open("a", encoding="utf-8") as file:
            file.write(text)
        for message in printed.new(last=True):
            append(here, message["text"])
    assert here.read_text(encoding="utf-8") == "one\nzwei ü\n"
    assert here.stat().st_mode & 0o077 == 0


def test_a_letter_that_is_cut_in_two_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MOST_AT_ONCE", 3)
    (tmp_path / "log").write_bytes("abü".encode())
    assert "".join(message["text"] for message in Printed(tmp_path / "log").new(last=True)) == "abü"


def test_no_more_than_so_much_in_one_second_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(forward, "MOST_IN_ALL", 25)
    (tmp_path / "log").write_text("x" * 100)
    printed = Printed(tmp_path / "log")
    assert [len(message["text"]) for message in printed.new()] == [10]
    assert list(printed.new()) == []  # within the same second
    (second, third) = printed.new(last=True)
    assert (second["text"], third["text"], second["cut"], third["cut"]) == ("x" * 10, "x" * 5 + CUT, False, True)
    assert list(printed.new(last=True)) == []


def test_another_home_at_the_same_path_is_not_the_drivers(tmp_path: Path) -> None:
    known = home_id(tmp_path / "a")
    assert home_id(tmp_path / "a") == known
    assert is_home(tmp_path / "a", known)
    assert not is_home(tmp_path / "b", known)
    home_id(tmp_path / "b")
    assert not is_home(tmp_path / "b", known)
