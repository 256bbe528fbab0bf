"""The other end of ``sparsefleet.cli.relay``, a job on the cluster's head node: ``python -m sparsefleet.cli.relayed [OPTIONS] -- VERB …``.

Runs the verb as a process of its own, with this machine's settings and the cluster's address, and prints frames. ``--flag`` is what the user
adds to a command to get here again, ``--parcel`` the folder with what was sent along.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from sparsefleet.fleet.remote_frames import Writer
from sparsefleet.spawn import module_command

_OF_THE_JOB = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "SPARSEFLEET_PLUGINS")
"""Whatever joins Ray below this job is a driver like any other: the parcel is no business of its workers."""


def main() -> None:
    """One of the two processes: the one that frames, or the verb itself."""
    split = sys.argv.index("--")
    words, verb = sys.argv[1:split], sys.argv[split + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag", default="")
    parser.add_argument("--parcel", type=Path)
    parser.add_argument("--inside", action="store_true")
    asked = parser.parse_args(words)
    if asked.inside:
        _run(asked.parcel, verb)
    sys.exit(_framed(asked.parcel, asked.flag, verb))


def _framed(parcel: Path | None, flag: str, verb: list[str]) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_JOB}
    environment |= {"SPARSEFLEET_RELAYED": "1", "SPARSEFLEET_RELAYED_FLAG": flag, "SPARSEFLEET_RAY_ADDRESS": os.environ["RAY_ADDRESS"]}
    if parcel is not None:
        from sparsefleet.fleet.bundle import import_path
        from sparsefleet.fleet.remote_parcel import PLUGINS

        places = environment.get("PYTHONPATH", "").split(os.pathsep)
        folder = parcel / PLUGINS
        environment["PYTHONPATH"] = import_path(folder if folder.is_dir() else None, [p for p in places if p != str(parcel)])
    given = ["--parcel", str(parcel)] if parcel is not None else []
    command = module_command("sparsefleet.cli.relayed", "--inside", *given, "--", *verb)
    writer = Writer(sys.stdout.fileno())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray ends every process of a job: the verb first, so that its end is told
        signal.signal(number, lambda *_: None)
    assert child.stdout is not None
    assert child.stderr is not None
    talk = threading.Thread(target=writer.copy, args=("e", child.stderr))
    talk.start()
    writer.copy("o", child.stdout)
    talk.join()
    code = child.wait()
    writer.end(code if code >= 0 else 128 - code)
    return code if code >= 0 else 128 - code


def _run(parcel: Path | None, verb: list[str]) -> None:
    """Does not return. With a parcel it runs in the folder of the grid, under the settings of the folder where it was started."""
    from sparsefleet.cli.app import cli
    from sparsefleet.cli.session import Session
    from sparsefleet.cli.settings import said_again
    from sparsefleet.cli.talk import report_error
    from sparsefleet.errors import SparsefleetError

    if parcel is not None:
        from sparsefleet.fleet.remote_parcel import GRID, refuse_other_code
        from sparsefleet.registry import catalog

        try:
            os.environ.update(said_again(Session().settings))
            refuse_other_code(parcel, catalog())
        except SparsefleetError as error:
            sys.exit(report_error(error, debug="--debug" in verb))
        if (parcel / GRID).is_dir():
            os.chdir(parcel / GRID)
    cli(args=verb, prog_name="sparsefleet")


if __name__ == "__main__":
    main()
