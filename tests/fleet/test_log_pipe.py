"""What a trial prints reaches its log without secrets, however it is cut into pieces."""

from __future__ import annotations

import os

from sparsefleet.fleet.log_pipe import LogPipe

SECRET = "canary-" + "0123456789" * 3


def test_the_log_is_private_and_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", SECRET)
    before = os.umask(0)
    try:
        log = LogPipe(tmp_path / "logs" / "log")
    finally:
        os.umask(before)
    for piece in ("one ", SECRET[:9], SECRET[9:] + "\ntwo\n", "\udcff last"):
        os.write(log.write, piece.encode("utf-8", "surrogateescape"))
        assert log.take()
    assert (tmp_path / "logs" / "log").read_text() == "one [redacted: A_TOKEN]\ntwo\n"
    log.parted()
    assert not log.take()
    log.close()
    assert (tmp_path / "logs" / "log").read_bytes() == b"one [redacted: A_TOKEN]\ntwo\n\xff last"
    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "logs", tmp_path / "logs" / "log")] == ["0o700", "0o600"]


def test_a_secret_across_the_pieces_of_an_endless_line_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", SECRET)
    log = LogPipe(tmp_path / "log")
    for piece in ("x" * 60_000, "y" * 5_530 + SECRET[:20], SECRET[20:], "z" * 70_000):
        os.write(log.write, piece.encode()[:65_536])
        log.take()
    log.parted()
    log.close()
    text = (tmp_path / "log").read_text()
    assert SECRET[:25] not in text
    assert "[redacted: A_TOKEN]" in text
