"""The generated pages say what the code says, and every hook is documented with its exact signature."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefleet import hookspecs
from sparsefleet.registry import catalog
from sparsefleet.trial.record import Record
from sparsefleet.trial.spec import TrialSpec

ROOT = Path(__file__).parents[2]
HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("sparsefleet_")}


@pytest.mark.slow
def test_a_stale_page_is_noticed(tmp_path):
    """A check that cannot fail is a defect: on a copy with one word changed it ends with 1 and names the page."""
    for part in ("sparsefleet", "tests", "benchmarks"):
        (tmp_path / part).symlink_to(ROOT / part)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    hooks = tmp_path / "docs" / "hooks.md"
    hooks.write_text(hooks.read_text().replace("step: int", "step: float"))
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "docs/hooks.md is stale\n  fix: python docs/generate.py\n")


@pytest.mark.slow
def test_a_picture_with_one_other_dot_is_noticed(tmp_path):
    from PIL import Image

    for part in ("sparsefleet", "tests", "benchmarks"):
        (tmp_path / part).symlink_to(ROOT / part)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "docs" / "pictures" / "connectivity-rows.png"
    image = Image.open(path)
    image.putpixel((0, 0), 255 - image.getpixel((0, 0)))
    image.save(path)
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "docs/pictures/connectivity-rows.png is stale" in done.stderr


def test_every_connectivity_has_a_picture_on_its_page():
    page = (ROOT / "docs" / "connectivity.md").read_text()
    names = [entry.name for entry in catalog().entries if entry.family == "connectivity" and entry.distribution == "sparsefleet"]
    assert [name for name in names if f"## {name}" not in page] == []
    shown = re.findall(r"\(pictures/connectivity-([a-z0-9-]+)\.png\)", page)
    assert [name for name in names if name != "erdos-renyi" and name not in shown] == []  # that one is random by another name


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_hook_is_documented_with_its_exact_signature(name):
    signature = inspect.signature(HOOKS[name])
    arguments = ", ".join(f"{p.name}: {p.annotation}" for p in signature.parameters.values())
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert f"```python\ndef {name}({arguments}) -> {signature.return_annotation}\n```" in page


def test_no_hook_is_documented_that_does_not_exist():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "hooks.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(HOOKS)


def test_every_hook_says_when_it_was_added():
    assert [name for name, hook in HOOKS.items() if not re.search(r"Added in \d+\.\d+\.$", inspect.getdoc(hook) or "")] == []


@pytest.mark.parametrize(("file", "model"), [("sf-record-1", Record), ("sf-spec-1", TrialSpec)])
def test_the_published_schemas_are_schemas_of_what_is_written(file, model):
    from jsonschema import Draft202012Validator

    schema = json.loads((ROOT / "docs" / "schemas" / f"{file}.json").read_text())
    Draft202012Validator.check_schema(schema)
    spec = {"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "optimizer": {"kind": "sgd", "lr": 0.1}, "train": {"epochs": 1}}
    written = TrialSpec(**spec).to_json()
    if model is Record:
        times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:01+00:00", "wall_s": 1.0}
        parts = {"plugins": [], "code": {}, "data": {}, "device": {}}
        written = Record(trial_key="0" * 64, spec_id="0" * 12, state="SUCCEEDED", spec=written, **parts, **times).to_json()
    Draft202012Validator(schema).validate(written)
    assert list(Draft202012Validator(schema).iter_errors({**written, "extra": 1}))


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in [ROOT / "README.md", *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
