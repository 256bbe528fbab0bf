"""The wire between a laptop and a cluster's job server: frames, parcels, and what the client does with the token. No Ray."""

import io
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, strategies as st

from sparsefleet.errors import BackendUnreachable, UserError, VersionSkew
from sparsefleet.fleet.remote import JobExists, JobServer
from sparsefleet.fleet.remote_frames import Reader, Writer
from sparsefleet.fleet.remote_parcel import make_parcel, refuse_other_code
from sparsefleet.registry import catalog

RAYS_OWN = "2026-11-23 05:30:17,091\tINFO job_manager.py:581 -- Runtime env is setting up.\n"


def framed(pieces, code=0):
    """What a job's log holds after a verb has printed these (stream, bytes)."""
    read, write = os.pipe()
    writer = Writer(write)
    done = []
    drain = threading.Thread(target=lambda: done.append(os.fdopen(read, "rb").read()))
    drain.start()
    for stream, body in pieces:
        source_read, source_write = os.pipe()
        os.write(source_write, body)
        os.close(source_write)
        with os.fdopen(source_read, "rb") as source:
            writer.copy(stream, source)
    writer.end(code)
    os.close(write)
    drain.join()
    return done[0].decode("ascii")


def joined(frames):
    return {stream: "".join(text for s, text in frames if s == stream) for stream in ("o", "e")}


@given(
    st.lists(st.tuples(st.sampled_from("oe"), st.text().map(lambda t: t.encode("utf-8", "backslashreplace"))), max_size=6),
    st.integers(1, 40),
    st.integers(0, 255),
)
def test_two_streams_and_a_code_come_back_from_one_log_whatever_is_printed_and_however_it_is_cut(pieces, size, code):
    log = RAYS_OWN + framed(pieces, code)
    reader, found = Reader(), []
    for at in range(0, len(log), size):
        found += reader.take(log[at : at + size])
    assert joined(found) == {s: b"".join(body for stream, body in pieces if stream == s).decode() for s in "oe"}
    assert reader.exit_code == code
    assert list(reader.noise) == [RAYS_OWN.rstrip("\n")]


def test_a_log_that_is_read_once_more_gives_nothing_twice():
    log = framed([("o", b"first\n"), ("e", b"second\n"), ("o", b"third\n")], 5)
    reader = Reader()
    begun = reader.take(log[: log.index("third") - 3])
    reader.restart()
    assert joined(begun + reader.take(log)) == {"o": "first\nthird\n", "e": "second\n"}
    assert reader.exit_code == 5


def test_what_a_trial_prints_cannot_pass_for_a_frame():
    reader = Reader()
    (only,) = reader.take(framed([("o", b'sf1 [7, "x", 0]\n')], 3))
    assert only == ("o", 'sf1 [7, "x", 0]\n')
    assert reader.exit_code == 3
    assert reader.take('sf1 [9, "x"\nsf1 nonsense\n') == []


class Dashboard(BaseHTTPRequestHandler):
    """Answers as ``server.answers`` says, and keeps what it was asked."""

    def answer(self):
        self.server.asked.append((self.path, self.headers.get("Authorization"), self.server.server_address[1]))
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815  names of the library's

    def log_message(self, *args):
        pass


@pytest.fixture
def dashboards():
    """Two HTTP servers on loopback."""
    servers = []
    for _ in range(2):
        server = HTTPServer(("127.0.0.1", 0), Dashboard)
        server.asked, server.answer = [], (200, {}, b'{"ray_version": "2.60.0"}')
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def url_of(server):
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.network
def test_the_token_comes_from_where_ray_takes_it_and_goes_to_no_other_host(dashboards, tmp_path):
    first, second = dashboards
    (tmp_path / "token").write_text("s3cret\n")
    environ = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert JobServer(url_of(first), environ).ray_version() == "2.60.0"
    assert JobServer(url_of(first), {"RAY_AUTH_TOKEN": "other", **environ}).ray_version() == "2.60.0"
    assert [token for _, token, _ in first.asked] == ["Bearer s3cret", "Bearer other"]
    first.answer = (302, {"Location": f"{url_of(second)}/api/version"}, b"")
    with pytest.raises(BackendUnreachable, match="sends on to another address"):
        JobServer(url_of(first), environ).ray_version()
    assert second.asked == []


@pytest.mark.network
def test_a_default_token_leaves_this_machine_only_where_ray_is_told_to_use_tokens(monkeypatch, tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-this-machine")
    monkeypatch.setenv("HOME", str(tmp_path))
    sent = [
        JobServer(url, environ)._headers
        for url in ("http://127.0.0.1:1", "http://head:8265")
        for environ in ({}, {"RAY_AUTH_MODE": "token"})
    ]
    assert [bool(headers) for headers in sent] == [True, True, False, True]
    assert JobServer("http://127.0.0.1:1", {"RAY_AUTH_MODE": "disabled"})._headers == {}


@pytest.mark.network
@pytest.mark.parametrize(
    ("status", "environ", "said"),
    [
        (401, {"RAY_AUTH_MODE": "disabled"}, "asks for a token, and none was sent"),
        (401, {"RAY_AUTH_TOKEN": "s3cret"}, "does not take the one that was sent"),
        (403, {"RAY_AUTH_TOKEN": "s3cret"}, "refuses this machine's token"),
    ],
)
def test_a_missing_or_wrong_token_is_said_in_one_sentence_with_its_fix_and_never_shown(dashboards, status, environ, said):
    dashboards[0].answer = (status, {}, b"Unauthorized s3cret")
    with pytest.raises(BackendUnreachable, match=said) as refused:
        JobServer(url_of(dashboards[0]), environ).ray_version()
    assert "RAY_AUTH_TOKEN_PATH" in str(refused.value.fix)
    assert "s3cret" not in str(refused.value)


@pytest.mark.network
def test_what_answers_otherwise_is_named(dashboards):
    server = JobServer(url_of(dashboards[0]), {"RAY_AUTH_MODE": "disabled"})
    dashboards[0].answer = (200, {}, b"<html>")
    with pytest.raises(BackendUnreachable, match="is not Ray's dashboard"):
        server.ray_version()
    dashboards[0].answer = (500, {}, b"Traceback\nValueError: Job with submission_id x already exists. Please")
    with pytest.raises(JobExists):
        server.submit("x", "true")
    dashboards[0].server_close()
    dashboards[0].shutdown()
    with pytest.raises(BackendUnreachable, match="does not answer"):
        server.ray_version()


@pytest.mark.parametrize("url", ["http://me:pw@head:8265", "http://head:8265/?token=abc", "http://:8265", "https://head/#x"])
def test_an_address_holds_no_credentials_and_they_are_not_repeated(url):
    with pytest.raises(UserError, match="cannot be the address") as refused:
        JobServer(url, {})
    assert "pw" not in str(refused.value)
    assert "abc" not in str(refused.value)


PLUGIN = '''
import torch
from sparsefleet import Pruner, hookimpl

class Sent(Pruner):
    """Sent along."""

    name = "sent-along"

    def score(self, conn):
        return conn.weight.abs()

@hookimpl
def sparsefleet_pruners():
    return [Sent]
'''


def test_a_parcel_brings_what_the_head_cannot_fetch_and_names_the_code_of_the_rest(tmp_path, monkeypatch):
    (tmp_path / "sent.py").write_text(PLUGIN)
    (tmp_path / "my grid.yaml").write_text("name: demo\n")
    monkeypatch.setenv("SPARSEFLEET_PLUGINS", str(tmp_path / "sent.py"))
    plugins = catalog()
    body = make_parcel(plugins, ["pruner/sent-along", "pruner/magnitude"], tmp_path / "my grid.yaml")
    assert body == make_parcel(plugins, ["pruner/magnitude", "pruner/sent-along"], tmp_path / "my grid.yaml")
    with zipfile.ZipFile(io.BytesIO(body)) as parcel:
        names = parcel.namelist()
        parcel.extractall(tmp_path / "there")
    assert "grid/my grid.yaml" in names
    assert any(name.startswith("plugins/") and name.endswith(".dist-info/entry_points.txt") for name in names)
    code = json.loads((tmp_path / "there" / "code.json").read_text())
    assert set(code) == {"core", "pruner/magnitude"}
    refuse_other_code(tmp_path / "there", plugins)
    code["pruner/magnitude"][0] = "0" * 64
    code["rewirer/absent"] = ["1" * 64, "their-plugin 1.2 (111111111111)"]
    (tmp_path / "there" / "code.json").write_text(json.dumps(code))
    with pytest.raises(VersionSkew) as skew:
        refuse_other_code(tmp_path / "there", plugins)
    assert set(skew.value.differences) == {"pruner/magnitude", "rewirer/absent"}
    assert skew.value.differences["rewirer/absent"][1] == {"the cluster's head": "not there"}
