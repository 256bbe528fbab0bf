"""A real MLflow server: away while a grid runs, killed while it is written to, opened in a browser."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_track_upload import TABLE, full_home
from track_homes import filled_home, upload
from track_state import trial_runs

from sparsefleet.errors import UserError
from sparsefleet.ledger import open_ledger
from sparsefleet.track import names, read, server, ui
from sparsefleet.track.upload import UNREACHABLE, Following, drain

pytestmark = [pytest.mark.slow, pytest.mark.network]


@contextmanager
def serving(home: Path, port: int = 0) -> Iterator[str]:
    """MLflow's server for the database of ``home``, in a process group that is killed at the end."""
    process, address = ui.start(home, port)
    try:
        yield address
    finally:
        _kill(process)


def free_port() -> int:
    """A port that nothing listens on, below the range from which the kernel gives ports to outgoing connections.

    One of that range can be taken by any client at the moment when the server is away; even by one that tries to connect to it.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no free port found")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the server and its workers, and waits until all are gone: a dying worker still holds the port."""
    import psutil

    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


@pytest.fixture
def server_home(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


def test_what_was_left_while_the_server_was_away_is_uploaded_later_once(home: Path, server_home: Path) -> None:
    trials = filled_home(home, 6)
    port = free_port()
    begun = time.monotonic()
    away = upload(home, f"http://127.0.0.1:{port}")
    assert away.returncode == UNREACHABLE, away.stderr
    assert time.monotonic() - begun < 40
    with open_ledger(home) as ledger:
        assert ledger.outbox_size() == 8 - 1  # the sweep's start was replaced by its end
        assert {item.attempts for item in ledger.outbox()} == {0}
    with serving(server_home, port) as address:
        assert upload(home, address).returncode == 0
        assert upload(home, address).returncode == 0
        runs = trial_runs(server.connect(address))
        assert sorted(run.data.tags[names.TRIAL_KEY] for run in runs) == sorted(trial.key for trial in trials)
        assert {run.info.status for run in runs} == {"FINISHED"}
        rows, _ = read.rows("quick", address)
        with open_ledger(home) as ledger:
            assert [row.record for row in rows] == [row.record for row in ledger.trials("quick-12345678")]


def test_the_ui_listens_on_the_loopback_only_and_refuses_other_hosts(home: Path) -> None:
    import urllib.error
    import urllib.request

    import psutil

    with serving(home) as address:
        port = int(address.rpartition(":")[2])
        places = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
        assert places <= {"127.0.0.1"}
        evil = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(evil)
        assert refused.value.code == 403


def test_the_ui_of_a_home_without_uploads_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MLflow database"):
        ui.start(tmp_path)


def test_a_port_that_is_taken_is_said(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="is taken"):
            ui.start(home, other.getsockname()[1])


@pytest.mark.browser
def test_the_ui_shows_the_sweep_its_table_and_a_mask_picture(home: Path, tmp_path: Path) -> None:
    full_home(home)
    assert drain(home, server.local_uri(home), Following()) == 0
    client = server.connect(server.local_uri(home))
    sparse = next(run for run in trial_runs(client) if run.data.tags[names.ARM] == "sparse")
    with serving(home) as address, browser(tmp_path / "profile") as chromium:
        sweep = ui.link(address, "quick", server.local_uri(home))
        chromium.get(sweep)
        assert found(chromium, "//h1[contains(., 'quick-12345678')] | //h2[contains(., 'quick-12345678')]")
        row = found(chromium, "//table//tr[td]")
        assert row.text.split() == TABLE.splitlines()[-1].replace("|", " ").split()
        assert found(chromium, f"//a[contains(., '{sparse.info.run_name}')]")
        chromium.get(f"{sweep.rpartition('/')[0]}/{sparse.info.run_id}/model-metrics")
        assert found(chromium, "//*[text()='mask/0']")
        picture = found(chromium, "//img[starts-with(@src, 'blob:') or contains(@src, 'get-artifact')]")
        chromium.execute_script("arguments[0].scrollIntoView()", picture)
        assert waited(chromium, lambda: chromium.execute_script("return arguments[0].naturalWidth", picture)) == 256


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A headless Chromium that talks to nobody but us."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    assert chromium, "install Chromium, or leave the browser tests out: -m 'not browser'"
    assert driver, "install Chromium's driver (Debian: chromium-driver)"
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-sync", "disable-dev-shm-usage", "window-size=1600,3000", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    chrome = Chrome(options=options, service=ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def found(chrome: Any, xpath: str) -> Any:
    """The first element at ``xpath``, when it is there."""
    return waited(chrome, lambda: next(iter(chrome.find_elements("xpath", xpath)), None), xpath)


def waited(chrome: Any, value: Callable[[], Any], what: str = "") -> Any:
    end = time.monotonic() + 90
    while not (got := value()):
        assert time.monotonic() < end, f"{what} is not on the page:\n{chrome.find_element('tag name', 'body').text}"
        time.sleep(0.2)
    return got


def test_a_server_that_does_not_end_when_asked_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "_STOP_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    begun = time.monotonic()
    ui.stop(stubborn)
    assert stubborn.returncode == -9
    assert time.monotonic() - begun < 5
