"""Ray's job server, from any machine that reaches the dashboard. Imports neither ray nor torch: a verb on a laptop starts at once.

Not Ray's own ``JobSubmissionClient``: it goes to ``RAY_ADDRESS`` whatever address it is given, has no time limits, and takes ray's import.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sparsefleet.errors import BackendUnreachable, UserError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LIMIT_S = 20.0
_UPLOAD_LIMIT_S = 300.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TOKEN_FIX = "put the cluster's token into a file of yours: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE"


class JobExists(Exception):
    """A job of this id was submitted before."""


def is_url(address: str) -> bool:
    """True for the address of a dashboard, which any machine may use; others are Ray's own and for its nodes."""
    return address.startswith(("http://", "https://"))


class JobServer:
    """The job server of one cluster.

    Args:
        url: of the dashboard, perhaps with a path where a proxy stands before it.

    Raises:
        UserError: the address holds more than that; credentials would end up in logs.
    """

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise UserError(
                f"{shown!r} cannot be the address of a cluster",
                cause="it must be a host, a port and at most a path",
                fix=f"http://HEAD:8265; credentials do not belong into it: {_TOKEN_FIX}",
            )
        self.url = url.rstrip("/")
        self._is_here = parts.hostname in _LOOPBACK
        token = _token(environ, self._is_here)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if self._is_here:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._json("GET", "/api/version")["ray_version"])

    def submit(self, job: str, entrypoint: str, parcel: str | None = None) -> None:
        """Start a job on the head node.

        Args:
            entrypoint: a line for a shell; it can be seen by everybody who reaches the dashboard.
            parcel: what ``upload`` gave: the job's working folder.

        Raises:
            JobExists: there is one of that id.
        """
        environment = {"working_dir": parcel} if parcel else {}
        self._json("POST", "/api/jobs/", {"submission_id": job, "entrypoint": entrypoint, "runtime_env": environment})

    def state(self, job: str) -> str:
        """PENDING, RUNNING or one of ``ENDED``."""
        return str(self._json("GET", f"/api/jobs/{quote(job)}")["status"])

    def jobs(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What the cluster knows of the jobs whose ids begin so, by id: ``status``, ``start_time`` and ``end_time`` in ms, and more."""
        jobs: list[dict[str, Any]] = self._json("GET", "/api/jobs/")
        return {job["submission_id"]: job for job in jobs if (job.get("submission_id") or "").startswith(prefix)}

    def log(self, job: str) -> str:
        """All that the job and Ray have written up to now."""
        return str(self._json("GET", f"/api/jobs/{quote(job)}/logs")["logs"])

    def stop(self, job: str) -> None:
        """Ask the job's processes to end: SIGTERM, and SIGKILL some seconds later."""
        self._json("POST", f"/api/jobs/{quote(job)}/stop", {})

    def delete(self, job: str) -> None:
        """Take a job that has ended off the list."""
        self._json("DELETE", f"/api/jobs/{quote(job)}")

    def upload(self, parcel: bytes) -> str:
        """The URI of a zip file, which is sent if the cluster does not hold it."""
        name = f"_ray_pkg_{hashlib.sha256(parcel).hexdigest()[:32]}.zip"
        place = f"/api/packages/gcs/{name}"
        try:
            self._send("GET", place)
        except _Refused as error:
            if error.status != 404:
                raise
            self._send("PUT", place, parcel, limit_s=_UPLOAD_LIMIT_S)
        return f"gcs://{name}"

    async def tail(self, job: str, take: Callable[[str], None]) -> None:
        """The job's log from its beginning, piece by piece as it is written, until the job or the connection ends."""
        import aiohttp

        place = f"{self.url}/api/jobs/{quote(job)}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, trust_env=not self._is_here) as session,
                session.ws_connect(place, heartbeat=_LIMIT_S, max_msg_size=0) as socket,
            ):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        take(message.data)
        except (aiohttp.ClientError, OSError) as error:
            raise self._away(error) from error

    def _json(self, method: str, place: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._send(method, place, json.dumps(body).encode() if body is not None else None)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise BackendUnreachable(f"what answers at {self.url} is not Ray's dashboard", fix="--address http://HEAD:8265") from error

    def _send(self, method: str, place: str, body: bytes | None = None, *, limit_s: float = _LIMIT_S) -> bytes:
        kind = "application/json" if method == "POST" else "application/octet-stream"
        request = urllib.request.Request(self.url + place, body, {**self._headers, "Content-Type": kind}, method=method)
        try:
            with self._opener.open(request, timeout=limit_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read(1 << 20).decode(errors="replace"), error.headers.get("Location")) from error
        except (OSError, HTTPException) as error:
            raise self._away(error) from error

    def _refusal(self, status: int, text: str, location: str | None) -> Exception:
        if status == 401:
            sent = "none was sent" if not self._headers else "it does not take the one that was sent"
            return BackendUnreachable(f"the cluster at {self.url} asks for a token, and {sent}", fix=_TOKEN_FIX)
        if status == 403:
            sent = "refuses this machine's token" if self._headers else "refuses this machine"
            return BackendUnreachable(f"the cluster at {self.url} {sent}", fix=_TOKEN_FIX)
        if 300 <= status < 400:
            return BackendUnreachable(
                f"{self.url} sends on to another address",
                cause=f"{location or 'it does not say which'}; the token is sent to no other host than the one named",
                fix="name that address, if it is the cluster's",
            )
        if "already exists" in text:
            return JobExists(text)
        last = text.strip().splitlines()[-1][:300] if text.strip() else "no reason given"
        return _Refused(
            status, f"the cluster at {self.url} refuses a request with {status}", cause=last, fix="sparsefleet doctor --cluster"
        )

    def _away(self, error: Exception) -> BackendUnreachable:
        return BackendUnreachable(
            f"the cluster at {self.url} does not answer",
            cause=str(getattr(error, "reason", None) or error or type(error).__name__),
            fix="start its head with a dashboard (pip install 'ray[default]', ray start --head), or open a way: ssh -L 8265:127.0.0.1:8265 HEAD",
        )


class _Refused(BackendUnreachable):
    """The job server said no."""

    def __init__(self, status: int, what: str, *, cause: str, fix: str) -> None:
        super().__init__(what, cause=cause, fix=fix)
        self.status = status


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the token along to wherever it is sent on."""

    def redirect_request(self, *args: Any, **named: Any) -> None:
        """Never."""


def _token(environ: Mapping[str, str], is_here: bool) -> str | None:
    """Ray's token, from where Ray takes it. That of the default file may be another cluster's: it leaves the machine only if Ray is told to."""
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"].strip()
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    if not named and not (is_here or mode == "token"):
        return None
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        if named:
            raise UserError(f"RAY_AUTH_TOKEN_PATH names {named}, which is not there", fix=_TOKEN_FIX) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token file {path} cannot be read", cause=str(error), fix=_TOKEN_FIX) from error
    if not token.isprintable() or not token.isascii():
        raise UserError(f"the token file {path} holds no token", cause="it is not one line of ASCII", fix=_TOKEN_FIX)
    return token or None
