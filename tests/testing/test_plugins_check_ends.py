"""What ``plugins check`` leaves and says when it is ended, asked wrongly, or told too much."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsefleet.cli.plugins_check import _cut, _refuse_unknown_checks
from sparsefleet.errors import UserError
from sparsefleet.spawn import module_command
from sparsefleet.testing.isolated import STARTING, Result
from sparsefleet.testing.targets import entries_of

HANGS = Path(__file__).parent / "wrong" / "hangs.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="death signals are Linux's")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_plugin_ends_with_the_command(sent):
    command = module_command("sparsefleet.cli", "plugins", "check", str(HANGS))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as process:
        for line in process.stderr:
            if b"starts" in line:
                break
        time.sleep(0.2)
        began = time.monotonic()
        os.kill(process.pid, sent)
        process.stderr.read()  # ends when the last process that holds it has ended: the child's own limit is 60 s
        process.wait()
    assert process.returncode == -sent
    assert time.monotonic() - began < 30


def test_a_check_that_is_misspelt_finds_its_name():
    with pytest.raises(UserError, match="did you mean 'counts_exactly'"):
        _refuse_unknown_checks(("counts_exactl",), [(None, [Result(STARTING, "", "", 0.0)])])


def test_a_plugin_of_another_family_is_told():
    with pytest.raises(UserError, match=r"no rewirer is called 'magnitude'(?s:.)*pruner/magnitude"):
        entries_of("rewirer/magnitude")


def test_a_name_of_the_right_family_is_suggested():
    with pytest.raises(UserError) as told:
        entries_of("pruner/magnitud")
    assert "did you mean 'magnitude'" in str(told.value)
    assert "rigl" not in str(told.value)


def test_a_message_of_a_million_characters_is_cut():
    assert _cut("a" * 10) == "a" * 10
    assert _cut("a" * 1_000_000) == "a" * 1000 + "… (1,000,000 characters)"
