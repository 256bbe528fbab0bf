"""``plugins check`` as a user runs it: right and wrong plugins by name, by file and by folder; what crashes or hangs is named and the rest goes on."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet.spawn import module_command
from sparsefleet.testing.isolated import RUNS, STARTING, Target, check_isolated

WRONG = Path(__file__).parent / "wrong"


def plugins_check(*arguments, cwd=None, **variables):
    """Exit code, JSON answer and talk."""
    done = subprocess.run(
        module_command("sparsefleet.cli", "plugins", "check", *map(str, arguments), "--json"),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **variables},
        timeout=280,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def problems(answer):
    """``{check: problem}`` of the one plugin in the answer."""
    (plugin,) = answer["plugins"]
    return {check["check"]: check["problem"] for check in plugin["checks"]}


IN_USE = "leaves_its_input_alone"
FAULTS = [
    # file, check that names the fault, words of its message
    ("segfault", IN_USE, r"ended the process with signal 11 (SIGSEGV), at segfault_"),
    ("exits_in_c", IN_USE, "ended the process with exit code 9"),
    ("hangs_in_c", IN_USE, "it still ran and was killed, at hangs_in_c_"),
    ("hangs", IN_USE, "it still ran, at hangs_"),
    ("exits", IN_USE, "os._exit(0) at exits_"),
    ("poisons_at_import", "imports_cleanly", "torch's default dtype: torch.float64"),
    ("poisons_at_import", "imports_cleanly", "OMP_NUM_THREADS: '64'"),
    ("poisons_at_import", "imports_cleanly", "drew from or seeded the generator of torch"),
    ("cuda_at_import", "imports_cleanly", "TABLE = torch.ones(3).cuda()"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "check", "words"), FAULTS)
def test_the_fault_is_named_and_the_other_checks_go_on(file, check, words):
    only = [part for name in (check, "has_a_name", "is_immutable", "survives_an_empty_layer") for part in ("--only", name)]
    timeout = () if file in ("segfault", "exits_in_c") else ("--timeout", "2")
    code, answer, _ = plugins_check(WRONG / f"{file}.py", *only, *timeout)
    found = problems(answer)
    assert code == 3
    assert words in found[check]
    assert found["has_a_name"] == found["is_immutable"] == ""
    assert "survives_an_empty_layer" in found  # comes after the check that ended the process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "words"),
    [("exits_at_import", "failed to import (SystemExit: 5)"), ("leaves_at_import", "ended the process with exit code 7 at import")],
)
def test_a_plugin_that_ends_the_process_at_import_is_told_by_the_catalogue(file, words):
    code, answer, _ = plugins_check(WRONG / f"{file}.py")
    assert code == 3
    assert answer["plugins"][0]["reason"].startswith("broken: ")
    assert words in answer["plugins"][0]["reason"]


def on_a_terminal(*arguments):
    """What a terminal shows that has both streams."""
    master, slave = pty.openpty()
    command = module_command("sparsefleet.cli", "plugins", "check", *map(str, arguments))
    done = subprocess.run(command, stdout=slave, stderr=slave, timeout=280, check=False)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    return done.returncode, shown


@pytest.mark.slow
def test_a_terminal_shows_each_passed_check_once_and_a_pipe_gets_the_table():
    asked = (WRONG / "right.py", "--only", "survives_json")
    code, shown = on_a_terminal(*asked)
    assert code == 0
    assert shown.count("survives_json") == 1
    assert ": 2 checks passed in " in shown
    done = subprocess.run(
        module_command("sparsefleet.cli", "plugins", "check", *map(str, asked)), capture_output=True, text=True, check=False
    )
    assert "survives_json" in done.stdout
    assert "checks passed" not in done.stdout


def test_a_right_file_passes_with_a_parameter_and_one_line_per_check():
    code, answer, talk = plugins_check(WRONG / "right.py", "--set", "exponent=2", "--only", "survives_json", "--only", "is_deterministic")
    assert code == 0
    assert problems(answer) == {STARTING: "", "survives_json": "", "is_deterministic": ""}
    assert [line.split()[:2] for line in talk.splitlines()[1:4]] == [[STARTING, "ok"], ["survives_json", "ok"], ["is_deterministic", "ok"]]
    assert talk.splitlines()[-1].startswith("next: sparsefleet submit grid")


@pytest.mark.slow
def test_every_check_of_a_right_file_passes():
    code, answer, _ = plugins_check(WRONG / "right.py")
    assert code == 0
    assert len(problems(answer)) > 15
    assert set(problems(answer).values()) == {""}


def test_the_parameter_that_is_needed_is_asked_for():
    code, answer, _ = plugins_check(WRONG / "needs_a_width.py")
    assert code == 3
    assert "cannot be built without width" in problems(answer)[STARTING]
    assert "--set width=INTEGER" in problems(answer)[STARTING]
    code, _, talk = plugins_check(WRONG / "needs_a_width.py", "--set", "width=0")
    assert code == 2
    assert "--set: " in talk


@pytest.mark.parametrize("layout", ["src", pytest.param("flat", marks=pytest.mark.slow)])
def test_a_project_that_is_not_installed(tmp_path, layout):
    where = tmp_path / "src" if layout == "src" else tmp_path
    where.mkdir(exist_ok=True)
    (where / "my_power.py").write_text((WRONG / "right.py").read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "my-power"\nversion = "0.3"\n[project.entry-points.sparsefleet]\npower = "my_power"\n'
    )
    code, answer, _ = plugins_check(".", "--only", "has_a_name", cwd=tmp_path)
    assert code == 0
    (plugin,) = answer["plugins"]
    assert [plugin[key] for key in ("family", "name", "distribution", "version", "module")] == [
        "pruner",
        "power",
        "my-power",
        "0.3",
        "my_power",
    ]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("magnitud", "did you mean 'magnitude'?"),
        ("absent.py", "is not there"),
        (".", "no [project.entry-points.sparsefleet]"),
        ("random/", "no plugin is called 'random/'"),
    ],
)
def test_what_cannot_be_found_is_an_input_error(tmp_path, what, words):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "nothing"\n')
    code, _, talk = plugins_check(what, cwd=tmp_path)
    assert code == 2
    assert words in talk


@pytest.mark.slow
def test_unknown_checks_and_parameters_are_refused():
    code, _, talk = plugins_check("magnitude", "--only", "is_perfect")
    assert (code, "no check of this family is called 'is_perfect'" in talk) == (2, True)
    code, _, talk = plugins_check("rigl", "--set", "drop=1")
    assert (code, "no plugin here has the parameter 'drop'" in talk) == (2, True)
    code, _, talk = plugins_check("magnitude", "--timeout", "0")
    assert (code, "cannot be limited" in talk) == (2, True)


@pytest.mark.slow
def test_each_check_is_announced_before_it_starts(monkeypatch):
    monkeypatch.syspath_prepend(str(WRONG))
    announced = []
    target = Target("pruner", "segfault", "segfault")
    results = check_isolated(target, timeout_s=60, only=["has_a_name", IN_USE, "is_immutable"], starting=announced.append)
    seen = [(result.check, "SIGSEGV" in result.problem) for result in results]
    assert announced == ["has_a_name", "is_immutable", IN_USE]
    assert seen == [(STARTING, False), ("has_a_name", False), ("is_immutable", False), (IN_USE, True)]


def test_the_parent_needs_no_torch():
    code = "import sys, sparsefleet.testing.isolated, sparsefleet.testing.targets, sparsefleet.cli.plugins_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_after_a_crash_of_a_first_use_nothing_that_uses_it_is_run(monkeypatch):
    monkeypatch.syspath_prepend(str(WRONG))
    results = list(check_isolated(Target("pruner", "segfault", "segfault"), timeout_s=60))
    runs = next(result for result in results if result.check == RUNS)
    assert "SIGSEGV" in runs.problem
    assert runs.problem.endswith("checks that use it were not run")
    assert [result.check for result in results if result.problem] == [RUNS]
    assert "is_immutable" in {result.check for result in results}
    assert IN_USE not in {result.check for result in results}
