"""Files of a trial that somebody sent: a link does not lead out of their folder, and what is no record is not taken for one."""

import json

import pytest

from sparsefleet.errors import UserError
from sparsefleet.trial.outside import own_file, read_spec


def test_a_link_that_leads_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path):
    (tmp_path / "sent").mkdir()
    for name in ("secret", "sent/own"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "sent" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "sent" / "in").symlink_to("own")
    with pytest.raises(UserError, match="leads out of"):
        own_file(tmp_path / "sent" / "out", tmp_path / "sent")
    assert own_file(tmp_path / "sent" / "in", tmp_path / "sent") == tmp_path / "sent" / "in"


def test_a_spec_is_given_as_it_was_understood_with_every_default(tmp_path):
    """What was checked is what is used: a number that came as a text is a number."""
    written = {"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "density": "0.5", "method": {"rewirer": {"name": "set"}}}
    written["optimizer"] = {"kind": "sgd", "lr": 0.1}
    (tmp_path / "spec.json").write_text(json.dumps({**written, "train": {"epochs": 1, "batch_size": 64}, "seed": 0}))
    found = read_spec(tmp_path / "spec.json", tmp_path)
    assert found["density"] == 0.5
    assert found["method"]["distribution"] == "uniform"


@pytest.mark.parametrize("text", ["[" * 100_000, json.dumps([]), json.dumps({"schema": "sf-spec/1"})])
def test_json_that_is_no_spec_is_refused(tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UserError, match="is not a trial's spec"):
        read_spec(tmp_path / "spec.json", tmp_path)
