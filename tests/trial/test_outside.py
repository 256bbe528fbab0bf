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


@pytest.mark.parametrize("text", ["[" * 100_000, json.dumps([]), json.dumps({"schema": "sf-spec/1"})])
def test_json_that_is_no_spec_is_refused(tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UserError, match="is not a trial's spec"):
        read_spec(tmp_path / "spec.json", tmp_path)
