"""What the guard leaves alone: the user's own Ctrl-C, alarms and streams, libraries that are imported late; and how it tells several faults."""

import os
import signal
import sys
import threading
import time

import pytest
import torch

from sparsefleet import Pruner, UserError
from sparsefleet.testing import Nonconforming, conformance, run_checks
from sparsefleet.testing.deadline import time_limit
from sparsefleet.testing.expect import expect
from sparsefleet.testing.guard import judge


class Plain(Pruner):
    """Magnitude."""

    name = "plain"

    def score(self, conn):
        return conn.weight.abs()


def test_a_check_that_passes_says_nothing():
    def passes(plugin):
        assert plugin.name == "plain"

    assert judge(passes, Plain()).problems == ()


def test_all_that_went_wrong_is_told():
    def fails(plugin):
        os.environ["SF_LEFT"] = "1"
        expect(False, "one", "two", "three")

    said = judge(fails, Plain()).problems
    assert said[0] == "expected: one\n  got:      two\n  mend:     three"
    assert "SF_LEFT: '1' (was unset)" in said[1]
    assert "SF_LEFT" not in os.environ


def test_what_a_check_raises_is_told_with_its_line():
    def breaks(plugin):
        return 1 / 0

    verdict = judge(breaks, Plain())
    assert "return 1 / 0" in verdict.problems[0]
    assert "ZeroDivisionError" in verdict.problems[0]
    assert verdict.stopped


def test_a_user_error_is_told_by_its_sentence():
    def refuses(plugin):
        raise UserError("no such shape", fix="another")

    (said,) = judge(refuses, Plain()).problems
    assert "raised UserError: no such shape\n  fix:   another" in said
    assert "Traceback" not in said


def test_the_users_ctrl_c_goes_through():
    def interrupted(plugin):
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        judge(interrupted, Plain())
    assert signal.getsignal(signal.SIGINT) is before


def test_an_alarm_of_the_caller_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    old = signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        judge(lambda plugin: None, Plain())
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left_s <= 30
        signal.raise_signal(signal.SIGALRM)
        assert rung == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *old)
        signal.signal(signal.SIGALRM, before)


def test_it_works_in_a_thread_without_alarms():
    found = []
    thread = threading.Thread(target=lambda: found.append(judge(lambda plugin: None, Plain())))
    thread.start()
    thread.join()
    assert found[0].problems == ()


def test_a_late_import_is_no_poison(tmp_path, monkeypatch):
    (tmp_path / "noisy_library.py").write_text("import os, warnings\nos.environ['NOISY'] = '1'\nwarnings.simplefilter('once')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def imports(plugin):
        import noisy_library  # noqa: F401

    assert judge(imports, Plain()).problems == ()
    sys.modules.pop("noisy_library", None)


def test_what_no_import_does_is_poison_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "bold_library.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def imports(plugin):
        import bold_library  # noqa: F401

    assert "torch's default dtype" in judge(imports, Plain()).problems[0]
    assert torch.get_default_dtype() == torch.float32
    sys.modules.pop("bold_library", None)


def test_a_forked_child_may_leave():
    def forks(plugin):
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    assert judge(forks, Plain()).problems == ()


def test_the_limit_comes_from_the_argument_then_the_environment(monkeypatch):
    assert time_limit() == 60
    monkeypatch.setenv("SPARSEFLEET_CHECK_TIMEOUT", "7")
    assert (time_limit(), time_limit(2)) == (7, 2)
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("SPARSEFLEET_CHECK_TIMEOUT", wrong)
        with pytest.raises(UserError, match="cannot be limited"):
            time_limit()


def test_run_checks_yields_rule_problem_and_seconds():
    began = time.perf_counter()
    outcome = next(run_checks(Plain()))
    assert (outcome.check, outcome.problem) == ("runs", "")
    assert outcome.rule.startswith("One typical use")
    assert 0 < outcome.seconds <= time.perf_counter() - began


def test_a_case_of_the_decorator_is_guarded():
    class Exits(Plain):
        """Leaves."""

        def score(self, conn):
            sys.exit(0)

    cases = {case.id: case.values[0] for case in conformance(Exits()).args[1]}
    with pytest.raises(Nonconforming, match=r"runs(?s:.)*sys.exit\(0\)"):
        cases["plain-runs"]()
