"""``doctor``."""

from __future__ import annotations

import click

from sparsefleet.cli.session import Session, json_option, leave, setting_option, verb
from sparsefleet.cli.talk import data, emit, next_command, say


@verb("doctor", "doctor", "doctor --json", "doctor --cluster --address 10.0.0.5:6379", short="Check this machine, with how to fix it.")
@click.option("--cluster", is_flag=True, help="Join the Ray cluster of --address and check it too, node by node.")
@setting_option("data")
@setting_option("mlflow_uri")
@json_option
def doctor(session: Session, cluster: bool, as_json: bool) -> None:
    """Check this machine: versions, plugins, folders, ports, and what makes timings noisy; with how to fix each.

    Ends with 3 if something must be fixed; a warning changes nothing.
    """
    from sparsefleet.cli.checks import run_checks

    checks = run_checks(session, cluster=cluster)
    wrong = [c for c in checks if c.state == "fail"]
    if as_json:
        emit({"ok": not wrong, "checks": [{"what": c.what, "state": c.state, "found": c.found, "fix": c.fix} for c in checks]})
    else:
        room = max(len(c.what) for c in checks)
        for check in checks:
            data(f"{check.state:<4}  {check.what:<{room}}  {check.found}")
            if check.state != "ok" and check.fix:
                data(f"{'':<4}  {'':<{room}}  fix: {check.fix}")
        if wrong:
            say(f"{len(wrong)} of {len(checks)} checks failed")
        else:
            next_command("submit grid quickstart")
    leave(3 if wrong else 0)
