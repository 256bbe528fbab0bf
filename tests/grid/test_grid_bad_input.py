"""reliability.md BI-02, BI-04: whatever the file holds, one InvalidGrid with file, line and key, and never another exception."""

from __future__ import annotations

import contextlib
import os
import random
import re

import pytest
from grid_plugins import CATALOGUE, HEAD, grid_of, within
from hypothesis import HealthCheck, example, given, settings, strategies as st

from benchmarks.inputs.nasty import NASTY
from sparsefleet.errors import InvalidGrid, PluginError, UserError
from sparsefleet.grid.load import load_grid, load_text
from sparsefleet.grid.settings import ROOT
from sparsefleet.grid.yaml_source import parse


@pytest.mark.parametrize(("text", "line", "parts"), NASTY, ids=range(len(NASTY)))
def test_a_nasty_file_is_refused_with_its_line_and_key(text: str, line: int, parts: list[str]) -> None:
    whole = text[1:] if text.startswith("!") else HEAD + text
    with within(1.0), pytest.raises((InvalidGrid, PluginError)) as caught:
        load_text(whole, "g.yaml", catalog=CATALOGUE)
    message = str(caught.value)
    assert caught.value.exit_code == (3 if isinstance(caught.value, PluginError) else 2)
    at_line = [one for one in message.split("\n") if one.startswith(f"g.yaml:{line} ")]
    assert any(all(part in one for part in parts) for one in at_line), message
    assert "\x1b" not in message
    assert "Traceback" not in message


def test_there_are_more_than_forty_nasty_files() -> None:
    assert len(NASTY) >= 40


def test_documented_values_of_yaml_1_2() -> None:
    text = "a: 1e-3\nb: no\nc: 010\nd: 1:30\ne: 2024-01-01\nf: 0x1F\ng: 0o17\nh: ~\ni: +12\nj: .5\nk: 1_000\non: True\nm: '1'\nn: 1.\n"
    assert parse(text, "g").data == {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "1:30",
        "e": "2024-01-01",
        "f": 31,
        "g": 15,
        "h": None,
        "i": 12,
        "j": 0.5,
        "k": "1_000",
        "on": True,
        "m": "1",
        "n": 1.0,
    }


def test_byte_order_mark_and_crlf_are_fine(tmp_path) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load_grid(str(path), catalog=CATALOGUE).digest == grid_of("").digest


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(InvalidGrid) as caught:
        grid_of("density: 2\nseeds: -1\naxes: {layer: [cssr], train.epoch: [1]}\nfoo: 1\ncontrol_arms: [x]\n")
    problems = caught.value.problems
    assert len(problems) == 6
    assert problems == sorted(problems, key=lambda p: int(re.match(r"g\.yaml:(\d+)", p).group(1)))


@pytest.mark.parametrize("content", [b"\xff\xfename", b"name: \x80", "name: ä".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "g.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="UTF-8"):
        load_grid(str(path), catalog=CATALOGUE)


def test_what_is_no_regular_file_is_never_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    big = tmp_path / "big.yaml"
    with big.open("wb") as stream:
        stream.truncate(10 * 2**30)  # sparse
    with within(1.0):
        for path, match in ((tmp_path / "fifo", "regular"), (tmp_path, "directory"), (big, "bytes"), ("/dev/zero", "regular")):
            with pytest.raises(UserError, match=match):
                load_grid(str(path), catalog=CATALOGUE)
        for name in ("nowhere.yaml", "a\0b", "x" * 5000):
            with pytest.raises(UserError, match="no grid file"):
                load_grid(name, catalog=CATALOGUE)


def test_a_typo_of_a_shipped_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_grid("quikstart", catalog=CATALOGUE)


def test_set_overrides_and_names_itself_in_problems() -> None:
    grid = grid_of("", set_=("train.epochs=7", "seeds=[4]", "optimizer={sgd: {lr: 1e-3}}"))
    assert (grid.base["train"]["epochs"], tuple(grid.seeds), grid.base["optimizer"]["sgd"]["lr"]) == (7, (4,), 0.001)
    for wrong, match in (("train.epoch=7", "did you mean 'epochs'"), ("density=nan", "density"), ("x", "KEY=VALUE"), ("a=[", "not YAML")):
        with pytest.raises(UserError, match=match):
            grid_of("", set_=(wrong,))


def _one_edit(word: str, rng: random.Random) -> str:
    at, letter = rng.randrange(len(word)), rng.choice("abcdefghijklmnopqrstuvwxyz")
    return rng.choice(
        [word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :], word[: at + 1] + word[at:]]
    )


def test_one_edit_typos_get_the_right_suggestion_first() -> None:
    """BI-04, the parts that are a grid's: keys, plugin names and parameter names."""
    rng = random.Random(4)
    cases = [(key, lambda t: f"{t}: 1\n") for key in ROOT]
    cases += [(name, lambda t: f"layer: {t}\n") for name in CATALOGUE.names("layer")]
    cases += [(name, lambda t: f"method: {{rewirer: {t}}}\n") for name in CATALOGUE.names("rewirer")]
    cases += [(name, lambda t: f"method: {{rewirer: {{rigl: {{{t}: 1}}}}}}\n") for name in ("every", "drop_fraction")]
    cases += [(name, lambda t: f"train: {{epochs: 1, {t}: 1}}\n") for name in ("batch_size", "weight_decay", "precision")]
    known = {word for word, _ in cases}
    right = n = 0
    while n < 100:
        word, text = rng.choice(cases)
        typo = _one_edit(word, rng)
        if typo in known or len(typo) < 3 or word in ("set",):  # "set" has neighbours that are as close
            continue
        n += 1
        with pytest.raises(InvalidGrid) as caught:
            load_text(
                (HEAD if "train" not in text(typo) else HEAD.replace("train: {epochs: 2}\n", "")) + text(typo), "g", catalog=CATALOGUE
            )
        right += f"did you mean {word!r}" in str(caught.value)
    assert right >= 95


WORDS = st.sampled_from(
    [*ROOT, "axes", "seeds", "include", "exclude", "when", "value", "values", "dense", "set", "csr", "mlp", "train.epochs"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    WORDS,
    st.sampled_from(["1e400", "0x", "<<", "&a"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)), max_leaves=12
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_any_structure_is_a_grid_or_a_user_error(extra: dict) -> None:
    whole = {**dict(line.split(": ", 1) for line in HEAD.splitlines()), **{key: _flow(value) for key, value in extra.items()}}
    text = "".join(f"{key}: {value}\n" for key, value in whole.items())
    with contextlib.suppress(UserError):
        assert load_text(text, "g.yaml", catalog=CATALOGUE).digest


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
@example("a: [\n- ")
@example("%TAG ! x\n--- !a b")
@example("? ")
@example("--- |\n  a\x85b")
def test_any_text_is_a_grid_or_a_user_error(text: str) -> None:
    with pytest.raises(UserError):
        load_text(text, "g.yaml", catalog=CATALOGUE)


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    return "~" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


VALIDATED = """
    from pydantic import Field, model_validator
    from sparsefleet import Pruner, hookimpl
    class Ordered(Pruner):
        "Two bounds."
        name = "two-bounds"
        low: float = Field(0.1, ge=0, le=1, description="low")
        high: float = Field(0.9, ge=0, le=1, description="high")
        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError(f"low must not be above high, got {self.low} and {self.high}")
            return self
        def score(self, conn):
            return conn.weight.abs()
    @hookimpl
    def sparsefleet_pruners():
        return [Ordered]
"""


def test_what_only_a_plugin_s_own_validator_knows_is_a_mistake_of_the_grid(plugin_distribution):
    plugin_distribution("sf-validated", {"sf_validated": VALIDATED})
    text = "name: x\ndataset: digits\nmodel: mlp\noptimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\nlayer: masked\ndensity: 0.5\nmethod:\n  pruner: {two-bounds: {low: LOW}}\n"
    with pytest.raises(InvalidGrid) as caught:
        load_text(text.replace("LOW", "0.95"), "g.yaml")
    assert caught.value.problems == ["g.yaml:9 method.pruner.two-bounds: pruner 'two-bounds': low must not be above high, got 0.95 and 0.9"]
    load_text(text.replace("LOW", "0.2"), "g.yaml")


def test_a_setting_under_an_axis_of_the_same_key_is_refused():
    text = "name: x\ndataset: digits\nmodel: mlp\noptimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\nlayer: csr\nmethod: {rewirer: set}\naxes: {density: [0.5, 0.1]}\n"
    with pytest.raises(InvalidGrid, match="--set density: the grid has an axis 'density', which takes its place"):
        load_text(text, "g.yaml", set_=["density=0.2"])


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("# hf is canary-abcdef-1\n", 6, "HF_TOKEN"),
        ("method: {rewirer: {set: {api_key: whatever1}}}\n", 6, "method.rewirer.set.api_key: api_key is the name of a secret"),
        ("dataset.mnist.url: https://bob:pw@host/x\n", 6, "a URL with a user or password"),
    ],
)
def test_a_grid_with_a_secret_is_refused_without_repeating_it(text, line, part, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-abcdef-1")
    with pytest.raises(InvalidGrid) as caught:
        grid_of(text)
    assert f"g.yaml:{line} " in str(caught.value)
    assert part in str(caught.value)
    assert "canary-abcdef-1" not in str(caught.value)
    assert "pw@host" not in caught.value.problems[0]
    with pytest.raises(InvalidGrid, match="--set name"):
        grid_of("", set_=("name=canary-abcdef-1",))
