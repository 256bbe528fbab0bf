"""SE-02: what listens while a local Ray and ``sparsefleet ui`` run, and whom it answers."""

from __future__ import annotations

import ipaddress
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks.figures import Figure, Run
from benchmarks.security.small import SmallHome
from sparsefleet.fleet.token import token_file
from sparsefleet.ledger import open_ledger
from sparsefleet.spawn import module_command

_START_S = 120.0
_OF_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS")
_OF_DASHBOARD = ("aiohttp_cors", "opencensus", "prometheus_client", "aiohttp")
_HOLD = """
import sys, ray
from sparsefleet.fleet.cluster import Cluster
with Cluster("local", 1):
    print("up", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
_KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=30)
except AuthenticationError:
    print("refused")
else:
    print("answered" if len(nodes) == 1 else "empty")
"""
_STRANGERS = {
    "no token": {"RAY_AUTH_MODE": "disabled"},
    "a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4},
}
_DASHBOARD = """
import json, logging, sys, ray
ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # loopback, as fleet.cluster does
context = ray.init(address="local", num_cpus=1, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
print("url", context.dashboard_url, flush=True)
sys.stdin.read()
"""


def listening(pid: int) -> list[tuple[str, int, str]]:
    """(address, port, name) of every TCP socket that the process or a descendant listens on."""
    found = set()
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((one.laddr.ip, one.laddr.port, process.name()))
        except psutil.Error:
            continue
    return sorted(found)


def is_loopback(address: str) -> bool:
    """True for 127.0.0.0/8 and ::1."""
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def status(url: str, method: str = "GET", **headers: str) -> int:
    """The HTTP status of one request."""
    request = urllib.request.Request(url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
    if method == "POST":
        request.data = b'{"entrypoint": "true"}'
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class Held:
    """A process that is ready when it prints a line beginning with ``word``; ended on leaving."""

    def __init__(self, command: list[str], word: str, environment: dict[str, str], folder: Path) -> None:
        self._command, self._word, self._environment, self._folder = command, word, environment, folder
        self.line = ""

    def __enter__(self) -> Held:
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, cwd=self._folder
        )
        self.line = self._awaited()
        if not self.line:
            self.__exit__()
            raise RuntimeError(f"{self._command[-1][:60]} did not start within {_START_S:g} s")
        return self

    def _awaited(self) -> str:
        """The line; empty if the process ended without it or took too long, whatever else it says."""
        assert self.process.stdout is not None
        said, end = b"", time.monotonic() + _START_S
        while (left := end - time.monotonic()) > 0 and select.select([self.process.stdout], [], [], left)[0]:
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            said += more
            whole = said.decode(errors="replace").split("\n")[:-1]
            found = next((line.strip() for line in whole if line.startswith(self._word)), "")
            if found or not more:
                return found
        return ""

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5 if self._word == "http" else 30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)  # Ctrl-C, with which ui ends its server too
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise


def _dashboard(here: SmallHome, environment: dict[str, str]) -> tuple[list[tuple[str, int, str]], dict[str, int]]:
    """The sockets of a Ray with its dashboard, and what that answers without a token, with a wrong one and with the right one."""
    with Held([sys.executable, "-c", _DASHBOARD], "url", environment, here.folder) as held:
        url = f"http://{held.line.split()[1]}"
        return listening(held.process.pid), {
            "dashboard": status(f"{url}/api/cluster_status"),
            "job": status(f"{url}/api/jobs/", "POST"),
            "job with a wrong token": status(f"{url}/api/jobs/", "POST", Authorization="Bearer 0123456789abcdef"),
            "with the token": status(f"{url}/api/version", Authorization=f"Bearer {token_file().read_text().strip()}"),
        }


def _head(address: str, environment: dict[str, str], folder: Path) -> dict[str, str]:
    """What the head of the product's own Ray says to strangers and to its own user."""
    told = {}
    for name, own in {**_STRANGERS, "its own token": {"RAY_AUTH_MODE": "token"}}.items():
        command = [sys.executable, "-c", _KNOCK, address]
        done = subprocess.run(command, env={**environment, **own}, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        told[name] = done.stdout.strip() or done.stderr[-300:]
    return told


def _environment(here: SmallHome) -> dict[str, str]:
    return {name: value for name, value in here.environment.items() if name not in _OF_RAY}


def figures(run: Run) -> list[Figure]:
    """Sockets that others than this machine reach, and the answers to strangers."""
    with tempfile.TemporaryDirectory(prefix="sparsefleet-doors-") as name:
        here = SmallHome(Path(name))
        environment = _environment(here)
        run.say("a local Ray, as submit starts it")
        with Held([sys.executable, "-c", _HOLD], "up", environment, here.folder) as held:
            doors = {"ray": listening(held.process.pid)}
            head = _head(held.line.split()[1], environment, here.folder)
        missing = [module for module in _OF_DASHBOARD if find_spec(module) is None]
        of_ray: dict[str, int] = {}
        if not missing:
            run.say("a local Ray with its dashboard")
            doors["dashboard"], of_ray = _dashboard(here, environment)
        run.say("sparsefleet ui")
        doors["mlflow"], answers = _mlflow(here, environment)
    answers |= of_ray
    strangers = [f"{kind} {ip}:{port} {process}" for kind, found in doors.items() for ip, port, process in found if not is_loopback(ip)]
    run.keep({"doors": doors, "answers": answers, "head": head})
    n_doors = sum(map(len, doors.values()))
    mode = token_file().stat().st_mode & 0o777
    told = ", ".join(f"{name}: {code}" for name, code in answers.items())
    without = f"no dashboard here: {', '.join(missing)} of ray[default] is not installed" if missing else ""
    ray_ok = None if missing else sum(answers[name] in (401, 403) for name in ("dashboard", "job", "job with a wrong token"))
    own = [answers["own Host"], *([] if missing else [answers["with the token"]])]
    mlflow_ok = sum(answers[name] == 403 for name in ("evil Host", "evil Origin"))
    return [
        Figure(
            "sockets that others can reach",
            "sockets",
            len(strangers),
            target=0,
            at_least=False,
            note="; ".join(strangers[:6]) or f"of {n_doors}",
        ),
        Figure("sockets that were looked at", "sockets", n_doors, note=", ".join(f"{kind}: {len(found)}" for kind, found in doors.items())),
        Figure("kinds of servers that listened", "kinds", sum(map(bool, doors.values())), target=len(doors)),
        Figure(
            "our own Ray refuses who has no token",
            "callers",
            [head[name] for name in _STRANGERS].count("refused"),
            target=2,
            note=str(head),
        ),
        Figure("our own Ray answers its own user", "callers", int(head["its own token"] == "answered"), target=1),
        Figure("Ray's dashboard refuses who has no token", "requests", ray_ok, target=3, note=without or told),
        Figure("MLflow refuses an evil Host and Origin", "requests", mlflow_ok, target=2),
        Figure("they answer their own", "requests", own.count(200), target=len(own)),
        Figure("bits of Ray's token file for others", "bits", mode & 0o077, target=0, at_least=False, note=f"{mode:04o}"),
    ]


def _mlflow(here: SmallHome, environment: dict[str, str]) -> tuple[list[tuple[str, int, str]], dict[str, int]]:
    sweep = _uploaded(here)
    with Held(module_command("sparsefleet.cli", "ui", sweep), "http", environment, here.folder) as held:
        address = held.line.split("/#/")[0]
        path = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
        answers = {
            "own Host": status(path),
            "evil Host": status(path, Host="evil.example.org"),
            "evil Origin": status(f"{address}/api/2.0/mlflow/experiments/create", "POST", Origin="http://evil.example.org"),
        }
        return listening(held.process.pid), answers


def _uploaded(here: SmallHome) -> str:
    """A sweep that is in MLflow without a trial: nothing runs for it."""
    here.home.mkdir(mode=0o700)
    with open_ledger(here.home) as ledger:
        ledger.create_sweep("doors-12345678", "doors", "12345678", "name: doors\n", {}, [])
    upload = module_command("sparsefleet.report.upload", "--home", str(here.home), "--until-empty")
    subprocess.run(upload, env=_environment(here), cwd=here.folder, check=True, capture_output=True, timeout=120)
    return "doors-12345678"
