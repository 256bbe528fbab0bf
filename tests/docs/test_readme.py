"""README's commands are one line each, and CI runs the test command as it stands there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_command_is_one_line_to_copy():
    assert [language for language, _ in BLOCKS] == ["bash"] * len(BLOCKS)
    assert [body for _, body in BLOCKS if body.strip().count("\n") or not body.strip()] == []


def test_the_first_command_installs_and_submits_and_the_second_tests():
    first, second = (body.strip().split(" && ") for _, body in BLOCKS[:2])
    assert first == [
        "python3 -m venv .venv",
        ".venv/bin/pip install -c constraints.txt -e .",
        ".venv/bin/sparsefleet submit grid quickstart",
    ]
    assert second == ["python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt -e '.[test]'", ".venv/bin/python scripts/check.py"]


def test_ci_finds_the_test_command():
    """The line that .ci/run takes out of README with awk is the second block, and nothing else."""
    (script,) = re.findall(r"awk '(.*?)' README\.md", (ROOT / ".ci" / "run").read_text())
    found = subprocess.run(["awk", script, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found == BLOCKS[1][1]


@pytest.mark.parametrize("name", ["run"])
def test_ci_scripts_are_shell(name):
    subprocess.run(["bash", "-n", ROOT / ".ci" / name], check=True)
    assert (ROOT / ".ci" / name).stat().st_mode & 0o100


def test_no_page_names_a_path_of_somebodys_machine():
    """Absolute paths outside of the system's own folders have no place in a page or in a script."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("scripts/*"), ROOT / ".ci" / "run"]
    found = [
        f"{p.relative_to(ROOT)}: {hit}"
        for p in pages
        if p.is_file()
        for hit in re.findall(r"(?<![\w.])/(?:work|home|root|Users|tmp)/\S*", p.read_text())
    ]
    assert found == []
