"""What a Ray cluster is, node by node, for ``doctor --cluster``. Facts only: the command line judges them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sparsefleet.errors import SparsefleetError
from sparsefleet.fleet.cluster import Cluster
from sparsefleet.fleet.forkserver import description
from sparsefleet.fleet.supervisor import Setup, Supervisor
from sparsefleet.fleet.token import open_token
from sparsefleet.ledger.store import ArtifactStore, file_sha256

_LIMIT_S = 120.0


@dataclass
class NodeFacts:
    """One node, as a task of ours found it.

    Attributes:
        problem: why it could not be looked at; then the rest is empty.
        code: as ``Supervisor.hello`` describes what it would run; empty where it cannot.
        clock_s: how far its clock is ahead of ours, and by how much that may be wrong.
        store: why it cannot use the artifact store; empty if it can.
        token: what is wrong with its token file; empty if nothing is.
    """

    name: str
    address: str
    resources: dict[str, float]
    problem: str = ""
    python: str = ""
    ray: str = ""
    auth: str = ""
    has_data: bool = False
    free_bytes: int = 0
    clock_s: tuple[float, float] = (0.0, 0.0)
    store: str = ""
    token: str = ""
    code: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClusterFacts:
    """The cluster as this process sees it; ``here`` is this process itself, ``token`` what was wrong with its token file until it joined."""

    gcs: str
    dashboard: str
    auth: str
    token: str
    here: dict[str, Any]
    nodes: list[NodeFacts]


def inspect(address: str, home: Path, store: str, data_root: Path) -> ClusterFacts:
    """Joins the cluster, looks at every node at once, and leaves it.

    Args:
        store: URI of the artifact store; a file is written to it here and read back on every node, and the other way round.

    Raises:
        BackendUnreachable: the cluster cannot be joined.
    """
    token = open_token()  # which joining takes away from others
    with Cluster(address, None), tempfile.TemporaryDirectory(prefix="sparsefleet-doctor-") as folder:
        sent = Path(folder) / "probe"
        sent.write_text(uuid4().hex)
        try:
            digest = ArtifactStore(store).put(sent).sha256
        except SparsefleetError:  # a node will say so too
            digest = ""
        alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        nodes = [NodeFacts(n["NodeName"], n["NodeManagerAddress"], _shown(n["Resources"])) for n in alive]
        _look_at_all(nodes, [n["NodeID"] for n in alive], (store, digest, str(data_root)))
        _ask_for_code(nodes, [n["NodeID"] for n in alive], Setup(str(home), store))
        worker: Any = ray._private.worker
        return ClusterFacts(
            gcs=str(ray.get_runtime_context().gcs_address),
            dashboard=str(worker.get_dashboard_url() or ""),
            auth=os.environ.get("RAY_AUTH_MODE", ""),
            token=token,
            here={**description(), "python": platform.python_version(), "ray": ray.__version__},
            nodes=nodes,
        )


def _shown(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if name in ("CPU", "GPU", "memory") or name.startswith("accelerator_type:")}


def _look_at_all(nodes: list[NodeFacts], ids: list[str], asked: tuple[str, str, str]) -> None:
    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    for node, node_id in zip(nodes, ids, strict=True):  # one at a time: the clocks are compared
        try:
            ray.get(task.options(scheduling_strategy=_on(node_id)).remote(*asked), timeout=_LIMIT_S)  # starts the worker
            begun = time.time()
            found = ray.get(task.options(scheduling_strategy=_on(node_id)).remote(*asked), timeout=_LIMIT_S)
            slack = time.time() - begun
        except (ray.exceptions.RayError, TimeoutError) as error:
            node.problem = str(getattr(error, "cause", None) or error).strip().splitlines()[-1][:300]
            continue
        node.clock_s = (found.pop("now") - begun - slack / 2, slack / 2)
        for name, value in found.items():
            setattr(node, name, value)


def _ask_for_code(nodes: list[NodeFacts], ids: list[str], setup: Setup) -> None:
    actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(Supervisor)
    asked = {
        n: actor_class.options(num_cpus=0, scheduling_strategy=_on(ids[n])).remote(setup)
        for n, node in enumerate(nodes)
        if not node.problem
    }
    told = {n: actor.hello.remote() for n, actor in asked.items()}
    for n, answer in told.items():
        try:
            nodes[n].code = ray.get(answer, timeout=_LIMIT_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            nodes[n].problem = f"its code cannot be asked for: {str(getattr(error, 'cause', None) or error).strip().splitlines()[-1][:300]}"
        finally:
            ray.kill(asked[n])


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def look(store: str, digest: str, data_root: str) -> dict[str, Any]:
    """What one node says of itself; runs there."""
    from sparsefleet.home import data_root as own_data_root

    return {
        "now": time.time(),
        "python": platform.python_version(),
        "ray": metadata.version("ray"),
        "auth": os.environ.get("RAY_AUTH_MODE", ""),
        "has_data": Path(data_root).is_dir() or own_data_root().is_dir(),
        "free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
        "store": _why_no_store(store, digest),
        "token": open_token(),
    }


def _why_no_store(uri: str, digest: str) -> str:
    with tempfile.TemporaryDirectory(prefix="sparsefleet-doctor-") as folder:
        store, own = ArtifactStore(uri), Path(folder) / "own"
        own.write_text(f"{uuid4().hex} {sys.executable}")
        try:
            store.get(store.put(own).sha256, Path(folder) / "back")
            if file_sha256(own) != file_sha256(Path(folder) / "back"):
                return "what it wrote came back altered"
            if not digest:
                return "this machine cannot write to it"
            store.get(digest, Path(folder) / "sent")
        except SparsefleetError as error:
            return error.cause or error.what
    return ""
