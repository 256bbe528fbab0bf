"""Folders where everybody may make some: only one that nobody else made or reaches is used."""

import os
import pickle

import pytest

from sparsefleet.errors import BackendUnreachable
from sparsefleet.home import own_folder


def test_it_is_made_private_whatever_the_umask_and_used_again(tmp_path):
    before = os.umask(0)
    try:
        folder = own_folder(tmp_path / "mine")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert own_folder(folder) == folder


def link(path):
    path.with_name("target").mkdir(mode=0o700)
    path.symlink_to("target")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda path: (path.mkdir(), path.chmod(0o750)), "its mode is 0750"),
        (link, "no folder"),
        (lambda path: path.touch(mode=0o600), "no folder"),
        pytest.param(
            lambda path: (path.mkdir(mode=0o700), os.chown(path, 4711, 4711)),
            "user 4711 made it",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away"),
        ),
    ],
)
def test_what_another_user_could_have_made_is_refused(tmp_path, made, why):
    made(tmp_path / "theirs")
    with pytest.raises(BackendUnreachable, match="is not used: other users could") as told:
        own_folder(tmp_path / "theirs")
    assert why in str(pickle.loads(pickle.dumps(told.value)))  # it comes from a node
