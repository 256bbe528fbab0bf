"""How a verb is said again for the cluster's head: nothing lost, nothing for the shell, nothing secret."""

import re
import subprocess

import click
import pytest
from cli_home import run_program
from hypothesis import given, strategies as st

from sparsefleet.cli.relay import entrypoint, said_again

printable = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" '\"$`\\;&|<>*?!#~(){}[]"))


def words_of(line):
    """What a shell makes of the end of an entrypoint: the words after the program's own options."""
    said = re.sub(r"exec python -m sparsefleet.cli.relayed", r"printf '%s\\0'", line)
    shell = subprocess.run(["sh", "-c", said], capture_output=True, check=True, env={"HOME": "/", "PATH": "/usr/bin:/bin"})
    return shell.stdout.decode().split("\0")[:-1]


@given(st.lists(printable, max_size=4), st.lists(printable, max_size=2), printable)
def test_no_word_of_a_verb_means_anything_to_the_shell_on_the_head(options, arguments, flag):
    line = entrypoint(options, arguments, has_parcel=False, flag=flag)
    assert words_of(line) == ["--flag", flag, "--", *options, "--", *arguments]


def test_a_grid_that_was_sent_is_named_as_in_the_parcel_and_a_shipped_one_by_its_name():
    hostile = "deep/$(touch x); `id` 'q'.yaml"
    assert words_of(entrypoint(["plan"], [hostile], has_parcel=True, flag=""))[-1] == "$(touch x); `id` 'q'.yaml"
    assert words_of(entrypoint(["plan"], ["quickstart"], has_parcel=True, flag=""))[-1] == "quickstart"


def heard(*words):
    """The command line as the relay would say it again."""
    from sparsefleet.cli.app import cli
    from sparsefleet.cli.session import Session

    session, command, context = Session(), cli, None
    context = cli.make_context("python -m sparsefleet.cli", list(words), obj=session)
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return said_again(session, context)


def test_options_and_arguments_are_said_again_without_what_concerns_this_machine():
    url = "http://127.0.0.1:1"
    assert heard("status", "x-1", "--trials", "--json", "--address", url) == (["status", "--trials", "--json"], ["x-1"])
    options, arguments = heard(
        *("submit", "grid", "a.yaml", "--set", "train.epochs=2", "--set=seeds=3", "--detach", "--max-parallel", "4", "--address", url)
    )
    assert options == ["submit", "grid", "--set=train.epochs=2", "--set=seeds=3", "--detach", "--max-parallel=4"]
    assert arguments == ["a.yaml"]
    assert heard("logs", "-n", "5", "--", "-odd") == (["logs", "--lines=5"], ["-odd"])


@pytest.mark.parametrize("flag", [("--home", "here"), ("--data", "there"), ("--mlflow-uri", "postgresql://me:pw@db/x")])
def test_settings_of_the_trials_machine_are_refused_and_a_password_is_not_sent(flag, tmp_path):
    done = run_program("submit", "grid", "quickstart", *flag, "--address", "http://127.0.0.1:1", home=tmp_path)
    assert done.returncode == 2
    assert f"{flag[0]} does not go together with the address of a cluster" in done.stderr
    assert "pw" not in done.stderr


def test_control_characters_are_not_sent(tmp_path):
    done = run_program("status", "a\nb", "--address", "http://127.0.0.1:1", home=tmp_path)
    assert done.returncode == 2
    assert "not printable" in done.stderr


@pytest.mark.network
def test_a_cluster_that_is_away_is_said_in_a_sentence(tmp_path):
    done = run_program("status", home=tmp_path, SPARSEFLEET_RAY_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 4
    assert "error: the cluster at http://127.0.0.1:1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_grid_is_refused_here_before_anything_is_sent(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: bad\ndataset: nothing-such\n")
    done = run_program("submit", "grid", str(tmp_path / "bad.yaml"), "--address", "http://127.0.0.1:1", home=tmp_path)
    assert done.returncode == 2
    assert "nothing-such" in done.stderr


class BrokenTail:
    """A job server whose stream of the log ends early without a word, as one does when a laptop sleeps; the job ends meanwhile."""

    def __init__(self, log: str) -> None:
        self._log, self._states = log, ["RUNNING", "SUCCEEDED"]

    def state(self, job: str) -> str:
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def log(self, job: str) -> str:
        return self._log

    async def tail(self, job: str, take) -> None:
        take(self._log[: len(self._log) // 2])


def test_the_last_words_of_a_verb_are_fetched_when_the_stream_broke(monkeypatch, capsys, tmp_path):
    from sparsefleet.cli import relay
    from sparsefleet.fleet.remote_frames import Reader, Writer

    log, said = tmp_path / "log", tmp_path / "said"
    with log.open("wb") as file:
        writer = Writer(file.fileno())
        for line in (b"first\n", b"last\n"):
            said.write_bytes(line)
            with said.open("rb") as source:
                writer.copy("o", source)
        writer.end(5)
    monkeypatch.setattr(relay, "_POLL_LIMIT_S", 0.0)
    reader = Reader()
    assert relay._follow(BrokenTail(log.read_text()), "job", reader) == "SUCCEEDED"
    assert (reader.exit_code, capsys.readouterr().out) == (5, "first\nlast\n")
