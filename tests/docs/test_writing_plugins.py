"""The plugin author's page shows what `plugins new` writes, word for word, and commands that exist."""

import re
from pathlib import Path

import pytest
from click import Context

from sparsefleet import scaffold, testing
from sparsefleet.cli.app import cli
from sparsefleet.plugin import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "writing-plugins.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_is_the_template(family):
    assert f"```python\n{scaffold.render(family, f'my-{family}')[f'sf_my_{family}.py']}```" in PAGE


def test_every_family_stands_in_the_table():
    assert [family for family in FAMILIES if f"| {family} | `" not in PAGE] == []


def test_its_commands_exist():
    group = cli.get_command(Context(cli), "plugins")
    named = set(re.findall(r"sparsefleet plugins (\w+)", PAGE))
    assert named >= {"new", "list", "check"}
    assert named <= set(group.list_commands(Context(group)))


def test_its_example_layer_is_eight_connections():
    conn = testing.layer_of((4, 6), 8)
    assert (conn.shape, conn.nnz) == ((4, 6), 8)


def test_every_example_stands_there_with_its_lines():
    rows = dict(re.findall(r"\| \[(sf-[a-z-]+)\]\(\.\./examples/\1\) \|.*\| (\d+) \|", PAGE))
    folders = sorted(path.parent for path in (Path(__file__).parents[2] / "examples").glob("sf-*/pyproject.toml"))
    lines = {folder.name: (folder / f"{folder.name.replace('-', '_')}.py").read_text().split("\n") for folder in folders}
    assert rows == {name: str(sum(1 for line in text if line.strip())) for name, text in lines.items()}
