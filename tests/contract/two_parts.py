"""A trial that is killed between two steps and taken up again."""

import pytest

from sparsefleet.trial import files
from sparsefleet.trial.checkpoint import FILE
from sparsefleet.trial.run import run_trial
from sparsefleet.trial.training import Training


class _Killed(BaseException):
    pass


def in_two_parts(monkeypatch, request, stop_at):
    """Kills the trial before the step that follows ``stop_at`` finished ones, and runs it again from its checkpoint; its record."""
    train_step = Training._train_step

    def step(self, x, y):
        if self.step == stop_at:
            raise _Killed
        train_step(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train_step", step)
        with pytest.raises(_Killed):
            run_trial(request)
    assert (request.workdir / FILE).exists()
    record = run_trial(request)
    assert not (request.workdir / FILE).exists()
    return record


def assert_same_network(one, other):
    """Two requests' trials left the same weights and connections, byte for byte."""
    for name in (files.MODEL, files.MASKS):
        assert (one.workdir / name).read_bytes() == (other.workdir / name).read_bytes(), name
