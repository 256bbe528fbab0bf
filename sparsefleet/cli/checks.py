"""What ``doctor`` looks at. Every check takes seconds at most, and none imports torch, ray or mlflow into this process."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from sparsefleet import kernels
from sparsefleet.cli.machine import Finding, cpu_checks, gpu_checks, setting_checks
from sparsefleet.cli.session import Session
from sparsefleet.errors import UserError
from sparsefleet.redact import redacted, without_user

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LITTLE_DISK = 2 * 2**30
_LOAD_S = 120.0


@dataclass(frozen=True)
class Check:
    """One finding; ``state`` is ok, warn or fail."""

    what: str
    state: str
    found: str
    fix: str = ""


def run_checks(session: Session, *, cluster: bool = False) -> list[Check]:
    """Every check, in a fixed order, and those of the cluster if asked; one that raises is a finding of its own and stops no other."""
    parts: list[Callable[[Session], Iterator[Check]]] = [
        _versions,
        _kernels,
        _plugins,
        _needs_of_plugins,
        _folders,
        _ray,
        _cpu,
        _settings,
        _data,
        _gpu,
        _mlflow,
    ]
    if cluster:
        from sparsefleet.cli.cluster_checks import cluster_checks

        parts.append(cluster_checks)
    checks: list[Check] = []
    for part in parts:
        try:
            checks += part(session)
        except Exception as error:  # noqa: BLE001  a machine can be broken in any way; doctor reports it
            checks.append(
                Check(part.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}", "run it again with --debug and report it")
            )
    return [replace(check, what=redacted(check.what), found=redacted(check.found), fix=redacted(check.fix)) for check in checks]


def _versions(session: Session) -> Iterator[Check]:
    from packaging.requirements import Requirement

    version = platform.python_version()
    ok = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Check("python", "ok" if ok else "fail", version, "use Python 3.10 to 3.13")
    try:
        declared = [Requirement(text) for text in metadata.requires("sparsefleet") or []]
    except metadata.PackageNotFoundError:
        yield Check("sparsefleet", "fail", "runs without being installed, so its plugins cannot be found", "pip install -e .")
        return
    for wanted in declared:
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Check(wanted.name, "fail", "not installed", f'pip install "{wanted.name}{wanted.specifier}"')
            continue
        fits = wanted.specifier.contains(found, prereleases=True)
        if wanted.name in ("torch", "ray", "mlflow") or not fits:
            yield Check(wanted.name, "ok" if fits else "fail", found, f'pip install "{wanted.name}{wanted.specifier}"')


def _kernels(session: Session) -> Iterator[Check]:
    try:
        off = kernels.is_off()
    except UserError as error:
        yield Check("sparse kernels", "fail", error.what, error.fix or "")
        return
    reason = kernels.why_not() or _load_kernels()
    fix = f"unset {kernels.VARIABLE}" if off else "install gcc, then pip install --force-reinstall --no-deps -e ."
    yield Check("sparse kernels", "warn" if reason else "ok", reason or "built, and loaded", fix)


def _load_kernels() -> str:
    """Why the kernels cannot be loaded; in a process of its own, with torch, as layers load them: a damaged library may end it."""
    look = "from sparsefleet.ops import native; print(native.why_not())"
    look = f"import sys; del sys.path[0]; {look}"  # not from the working directory
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", look], capture_output=True, text=True, check=False, timeout=_LOAD_S)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"loading the CPU kernels ended with {done.returncode}{f': {said[-1]}' if said else ''}"
    return done.stdout.strip()


def _plugins(session: Session) -> Iterator[Check]:
    from sparsefleet.registry import catalog

    entries = catalog().entries
    broken = [e for e in entries if e.state != "ok"]
    usable = sum(e.state == "ok" and e.family != "hooks" for e in entries)
    yield Check("plugins", "ok" if usable else "fail", f"{usable} usable, {len(broken)} not", "pip install sparsefleet")
    for entry in broken:
        reason = entry.reason.splitlines()[0] if entry.reason else entry.state
        yield Check(f"plugin {entry.name}", "warn", f"{entry.state}: {reason}", f"sparsefleet plugins show {entry.name}")


def _needs_of_plugins(session: Session) -> Iterator[Check]:
    """What plugins check of their own needs: the hook ``sparsefleet_doctor``."""
    from sparsefleet.registry import Registry

    for distribution, answer in Registry().observe("sparsefleet_doctor"):
        if isinstance(answer, BaseException):
            yield Check(distribution, "fail", f"its sparsefleet_doctor raised {type(answer).__name__}: {answer}", "see its author")
            continue
        for what, ok, fix in answer:
            yield Check(what, "ok" if ok else "fail", f"checked by {distribution}", fix)


def _folders(session: Session) -> Iterator[Check]:
    home = session.home
    nearest = home
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.access(nearest, os.W_OK) or not nearest.is_dir():
        yield Check("home", "fail", f"{home} cannot be written", "set SPARSEFLEET_HOME to a folder of yours")
        return
    if home.exists() and home.stat().st_mode & 0o077:
        yield Check("home", "warn", f"{home} is open to other users", f"chmod 700 {home}")
    else:
        yield Check("home", "ok", str(home) + ("" if home.exists() else " (made when needed)"))
    free = shutil.disk_usage(nearest).free
    yield Check(
        "disk",
        "ok" if free > LITTLE_DISK else "warn",
        f"{free / 2**30:.1f} GiB free",
        "models and masks need room: set SPARSEFLEET_ARTIFACTS",
    )


def _ray(session: Session) -> Iterator[Check]:
    address = session.get("address")
    token = bool(
        os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or (Path.home() / ".ray" / "auth_token").exists()
    )
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if address == "local":
        off = mode == "disabled"
        yield Check(
            "ray",
            "warn" if off else "ok",
            f"local, RAY_AUTH_MODE={mode or 'unset'}",
            "unset RAY_AUTH_MODE: anyone here may run code as you",
        )
    else:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        open_door = host not in LOOPBACK and not (mode == "token" or token)
        found = f"{address}, {'no token' if open_door else 'token or loopback'}"
        yield Check("ray", "fail" if open_door else "ok", found, "start the cluster with RAY_AUTH_MODE=token (CVE-2023-48022)")
    dashboard = os.environ.get("RAY_DASHBOARD_HOST", "")
    if dashboard and dashboard not in LOOPBACK and mode != "token":
        yield Check("ray dashboard", "fail", f"RAY_DASHBOARD_HOST={dashboard}", "unset RAY_DASHBOARD_HOST, or set RAY_AUTH_MODE=token")


def _cpu(session: Session) -> Iterator[Check]:
    yield from map(_check, cpu_checks())


def _settings(session: Session) -> Iterator[Check]:
    yield from map(_check, setting_checks())


def _check(finding: Finding) -> Check:
    return Check(finding.what, "warn" if finding.is_noisy else "ok", finding.found, finding.fix)


def _data(session: Session) -> Iterator[Check]:
    root = Path(session.get("data"))
    if root.is_dir():
        inside = sorted(p.name for p in root.iterdir())
        yield Check("data", "ok", f"{root}: {', '.join(inside[:6]) or 'empty'}{', …' if len(inside) > 6 else ''}")
    else:
        yield Check("data", "warn", f"{root} does not exist; digits needs none", "set SPARSEFLEET_DATA to where mnist/ lies")


def _gpu(session: Session) -> Iterator[Check]:
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not nodes:
        yield Check("gpu", "ok", "none; everything runs on the CPU")
        return
    build = metadata.version("torch")
    cpu_only = build.endswith("+cpu")
    yield Check("gpu", "warn" if cpu_only else "ok", f"{len(nodes)} NVIDIA, torch {build}", "install a CUDA build of torch to use it")
    yield from map(_check, gpu_checks())


def _mlflow(session: Session) -> Iterator[Check]:
    uri = session.get("mlflow_uri")
    shown = without_user(uri)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            yield Check("mlflow runs", "ok", f"{shown} (made when needed)")
            return
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)
        try:
            n = db.execute("SELECT count(*) FROM runs").fetchone()[0]
            yield Check("mlflow runs", "ok", f"{shown}: {n} runs")
        except sqlite3.DatabaseError as error:
            yield Check(
                "mlflow runs", "fail", f"{shown}: {error}", "restore the file, or move it away and: sparsefleet resume SWEEP --upload-again"
            )
        finally:
            db.close()
    elif uri.startswith(("http://", "https://")):
        parts = urlsplit(shown)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=1).close()
            yield Check("mlflow runs", "ok", f"{shown} answers")
        except OSError as error:
            yield Check("mlflow runs", "fail", f"{shown}: {error}", "start the server, or unset MLFLOW_TRACKING_URI")
    else:
        yield Check("mlflow runs", "ok", f"{shown} (not looked at)")
