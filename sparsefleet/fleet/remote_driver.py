"""A sweep's driver as a Ray Job: it goes on when whoever submitted the sweep is gone. For a process on the cluster's head node."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray

from sparsefleet.errors import BackendUnreachable, SweepLocked
from sparsefleet.fleet.head import knock
from sparsefleet.fleet.remote import ENDED, JobExists, JobServer
from sparsefleet.ledger import is_held, read_ledger
from sparsefleet.ledger.rows import LIVE_SWEEP

_START_LIMIT_S = 180.0
_LOOK_EVERY_S = 0.1


def start_driver(address: str, home: Path, sweep: str, command: Sequence[str], log: Path) -> str:
    """Run ``command``, which drives the sweep, as a job; the job's id, once the driver is at work or has ended well.

    The id is made of the sweep's, so that Ray itself refuses a second one; one that has ended does not stand in the way of the next.

    Args:
        address: of the cluster, which the command is told in the end.
        log: to which the driver's output is appended.

    Raises:
        SweepLocked: a job drives the sweep already.
        BackendUnreachable: the cluster has no job server, or the driver ended at once.
    """
    server = JobServer(_dashboard(address))
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    size = log.stat().st_size
    prefix = f"sparsefleet-{sweep}-"
    known = server.jobs(prefix)
    live = [job for job, told in known.items() if told["status"] not in ENDED]
    job = f"{prefix}{len(known) + 1}"
    line = f'cd && exec {shlex.join(command[:-2])} --address="$RAY_ADDRESS" {shlex.join(command[-2:])} >> {shlex.quote(str(log))} 2>&1'
    try:
        if live:
            raise JobExists(live[0])
        server.submit(job, line)
    except JobExists as error:
        raise SweepLocked(
            f"sweep {sweep!r} is being driven already, by job {live[0] if live else job}", fix=f"sparsefleet watch {sweep}"
        ) from error
    _wait(server, job, home, sweep, log, size)
    return job


def _dashboard(address: str) -> str:
    """The dashboard's URL as the cluster's own nodes see it."""
    try:
        knock(address)
        context: Any = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        place = context.address_info.get("webui_url")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise BackendUnreachable(f"Ray at {address!r} cannot be reached", cause=str(error), fix="sparsefleet doctor") from error
    finally:
        ray.shutdown()
    if not place:
        raise BackendUnreachable(
            "the cluster has no dashboard, and so no job server",
            fix="pip install 'ray[default]' on the head node, and ray start --head again",
        )
    return f"http://{place}"


def _wait(server: JobServer, job: str, home: Path, sweep: str, log: Path, size: int) -> None:
    """Until the driver has begun or has ended."""
    end = time.monotonic() + _START_LIMIT_S
    with read_ledger(home) as ledger:
        while not (is_held(home, sweep) and ledger.sweep(sweep).state in LIVE_SWEEP):
            state = server.state(job)
            if state == "FAILED" and log.stat().st_size == size:  # it never came to say why
                raise BackendUnreachable(
                    f"job {job} ended before the driver began", cause=server.log(job).strip()[-300:], fix="sparsefleet doctor"
                )
            if state in ENDED:
                return
            if time.monotonic() > end:
                raise BackendUnreachable(
                    f"job {job} has not begun to drive the sweep within {_START_LIMIT_S:.0f} s, and may yet",
                    fix=f"sparsefleet status {sweep}",
                )
            time.sleep(_LOOK_EVERY_S)
