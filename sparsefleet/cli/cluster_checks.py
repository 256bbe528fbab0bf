"""What ``doctor --cluster`` looks at: whether sweeps can run on the cluster, node by node, and who else could."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sparsefleet.cli.checks import LITTLE_DISK, LOOPBACK, Check
from sparsefleet.cli.session import Session
from sparsefleet.errors import BackendUnreachable, UserError
from sparsefleet.redact import redacted

if TYPE_CHECKING:
    from sparsefleet.fleet.inspect import ClusterFacts, NodeFacts

_CLOCK_S = 2.0
_TOKEN = "start every node with RAY_AUTH_MODE=token and the same ~/.ray/auth_token (CVE-2023-48022): docs/security.md"
_NEW_TOKEN = (
    "others of that machine may have read it: make a new one, ray get-auth-token --generate, chmod 600 it on every node, and restart them"
)
_SAME = "install the same versions on every node"


def cluster_checks(session: Session) -> Iterator[Check]:
    """Every check of the cluster at the setting ``address``; nothing is queued there."""
    from sparsefleet.home import artifact_root

    address = str(session.get("address"))
    if address.startswith(("http://", "https://")):
        yield Check("cluster", "fail", f"{address} is the address of its jobs", "give Ray's own: --address HOST:6379, or 'auto' on a node")
        return
    from sparsefleet.fleet.inspect import inspect  # imports ray

    home = session.made_home()
    try:
        facts = inspect(address, home, artifact_root(), Path(session.get("data")))
    except (BackendUnreachable, UserError) as error:
        cause = redacted(f"{error.what}: {error.cause or ''}".strip(": "))
        yield Check(
            "cluster", "fail", cause, error.fix or "start it, or correct --address; its Ray and Python must be of the same versions"
        )
        return
    yield Check("cluster", "ok", f"{address}: {len(facts.nodes)} nodes, GCS at {facts.gcs}")
    yield from _doors(facts)
    for node in facts.nodes:
        yield from _node(node, facts)
    yield from _mlflow_host(str(session.get("mlflow_uri")))


def _doors(facts: ClusterFacts) -> Iterator[Check]:
    """Token authentication, or nothing that others reach."""
    hosts = {facts.gcs.rpartition(":")[0], *(node.address for node in facts.nodes)}
    outside = sorted(host for host in hosts if host not in LOOPBACK)
    without = [node.name for node in facts.nodes if not node.problem and node.auth != "token"]
    if not outside:
        yield Check("token", "ok", f"{'on' if not without else 'off'}; nothing but loopback")
    else:
        told = f"off on {', '.join(without)}, which others reach at {', '.join(outside)}" if without else "on, on every node"
        yield Check("token", "fail" if without else "ok", told, _TOKEN)
    readable = {name: wrong for name, wrong in [("here", facts.token), *((node.name, node.token) for node in facts.nodes)] if wrong}
    told = "; ".join(f"{name}: {wrong}" for name, wrong in readable.items())
    yield Check("token file", "fail" if readable else "ok", told or "nobody else's", _NEW_TOKEN)
    if not facts.dashboard:
        yield Check("dashboard", "ok", "none")
        return
    url = facts.dashboard if "://" in facts.dashboard else f"http://{facts.dashboard}"
    code = _status(f"{url}/api/version")
    is_open = code == 200 and (urlsplit(url).hostname not in LOOPBACK)
    told = {200: "answers without a token", 401: "asks for the token", 0: "does not answer here"}.get(code, f"answers {code}")
    yield Check("dashboard", "fail" if is_open else "ok", f"{url} {told}", f"never --dashboard-host 0.0.0.0 without a token: {_TOKEN}")


def _node(node: NodeFacts, facts: ClusterFacts) -> Iterator[Check]:
    what = f"node {node.name}"
    if node.problem:
        yield Check(what, "fail", node.problem, f"{_SAME}: pip install sparsefleet")
    if not node.python:
        return
    here = facts.here
    accelerators = [name.removeprefix("accelerator_type:") for name in node.resources if name.startswith("accelerator_type:")]
    kinds = f" ({', '.join(accelerators)})" if accelerators else ""
    gpus = f"{node.resources.get('GPU', 0):g} GPUs{kinds}"
    yield Check(what, "ok", f"{node.address}: {node.resources.get('CPU', 0):g} CPUs, {gpus}")
    different = [
        f"{name} {there}, here {here[name]}" for name, there in (("python", node.python), ("ray", node.ray)) if there != here[name]
    ]
    yield Check(f"{what} versions", "fail" if different else "ok", "; ".join(different) or f"Python {node.python}, Ray {node.ray}", _SAME)
    if node.code:
        differences = _differences(node.code, here)
        yield Check(
            f"{what} code", "fail" if differences else "ok", "; ".join(differences) or f"sparsefleet {here['sparsefleet']}, the same", _SAME
        )
        if node.code.get("pickles", True):
            yield Check(f"{what} pickles", "fail", "MLflow may load pickles", "set MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false")
        else:
            yield Check(f"{what} pickles", "ok", "MLflow loads none")
    yield Check(
        f"{what} artifacts",
        "fail" if node.store else "ok",
        node.store or "written and read back",
        "name a store that every node reaches: SPARSEFLEET_ARTIFACTS=s3://… or a shared folder",
    )
    yield Check(
        f"{what} data",
        "ok" if node.has_data else "warn",
        "there" if node.has_data else "no data root; digits needs none",
        "set SPARSEFLEET_DATA there",
    )
    free = "ok" if node.free_bytes > LITTLE_DISK else "warn"
    yield Check(f"{what} disk", free, f"{node.free_bytes / 2**30:.1f} GiB free", "trials need room for models and masks")
    ahead, slack = node.clock_s
    is_off = abs(ahead) - slack > _CLOCK_S
    yield Check(
        f"{what} clock",
        "warn" if is_off else "ok",
        f"{ahead:+.2f} s from ours, ±{slack:.2f}",
        "no order depends on it, times in logs do: use NTP",
    )


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What a node would run that is other than here, in words."""
    found = [f"sparsefleet {there['sparsefleet']}, here {here['sparsefleet']}"] if there["sparsefleet"] != here["sparsefleet"] else []
    for part, what in (("core", "code"), ("harness", "code that times")):
        if there.get(part) != here.get(part) and not found:
            found.append(f"sparsefleet's {what} {str(there.get(part))[:12]}, here {str(here.get(part))[:12]}")
    if there["torch"] != here["torch"]:
        found.append(f"torch {there['torch']}, here {here['torch']}")
    ours, theirs = (
        {(family, name): (dist, version, digest) for family, name, dist, version, digest, _ in side["plugins"]} for side in (here, there)
    )
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and not (found and "sparsefleet" in (*ours.get(key, ())[:1], *theirs.get(key, ())[:1])):
            shown = [f"{side[key][0]} {side[key][1]} ({side[key][2][:12]})" if key in side else "not there" for side in (theirs, ours)]
            found.append(f"{'/'.join(key)}: {shown[0]}, here {shown[1]}")
    return found[:6] + ([f"and {len(found) - 6} more"] if len(found) > 6 else [])


def _mlflow_host(uri: str) -> Iterator[Check]:
    """Whether MLflow's server refuses a page that pretends to be it."""
    if not uri.startswith(("http://", "https://")):
        return
    parts = urlsplit(uri)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    code = _status(f"{bare}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example.org")
    state = {403: "ok", 401: "ok", 0: "fail"}.get(code, "fail")
    told = {403: "refuses a foreign Host", 401: "asks for a password", 0: "does not answer"}.get(code, f"answers {code} to a foreign Host")
    yield Check("mlflow host check", state, f"{bare} {told}", "start it with --allowed-hosts, by uvicorn (no --gunicorn-opts)")


def _status(url: str, **headers: str) -> int:
    """The HTTP status; 0 for no answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return 0
