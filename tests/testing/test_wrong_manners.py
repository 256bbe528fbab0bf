"""Plugins with bad manners, of any family: the kit names each fault, survives it, and leaves the process as it was."""

import os
import random
import signal
import sys
import threading
import time
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field

from sparsefleet import Pruner, keep_best
from sparsefleet.testing import Outcome
from sparsefleet.testing.kit import checks_for, run_check

_KEPT: list[Any] = []
_GO_ON = threading.Event()


@pytest.fixture(autouse=True)
def _let_go():
    yield
    _KEPT.clear()
    _GO_ON.set()  # threads that a plugin left end
    _GO_ON.clear()


def outcome_of(plugin, name, timeout_s=60.0) -> Outcome:
    """What the check of that name says of ``plugin``."""
    (check,) = [one for one in checks_for(plugin) if one.__name__ == name]
    return run_check(check, plugin, timeout_s)


class _Doing(Pruner):
    """Magnitude, after doing something it should not."""

    name = "wrong"

    def do(self) -> None:
        """The fault."""

    def score(self, conn):
        self.do()
        return conn.weight.abs()


def doing(work):
    """A pruner that calls ``work`` before every score."""

    class Wrong(_Doing):
        """Wrong in one way."""

        def do(self):
            work()

    return Wrong()


def _loop():
    while True:
        time.sleep(0.001)


def _swallowing_loop():
    while True:
        try:
            _loop()
        except BaseException:  # noqa: BLE001  the fault
            continue


def _swallow_own_exit():
    try:
        os._exit(3)
    except BaseException:  # noqa: BLE001  the fault
        return


def _interrupt():
    raise KeyboardInterrupt


def _open_file():
    os.open(os.devnull, os.O_RDONLY)


def _start_thread():
    threading.Thread(target=_GO_ON.wait, name="left-behind", daemon=True).start()


def _start_process():
    _KEPT.append(os.fork())
    if not _KEPT[-1]:
        time.sleep(5)
        os._exit(0)


class KeepsTensors(_Doing):
    """Remembers every score for ever."""

    def score(self, conn):
        _KEPT.append(conn.weight.abs())
        return _KEPT[-1]


class KeepsNumbers(_Doing):
    """Remembers every weight as a number."""

    def score(self, conn):
        _KEPT.append([float(w) for w in conn.weight])
        return conn.weight.abs()


class Hashes(_Doing):
    """Breaks ties by the hash of the layer's name, another number in every process."""

    def score(self, conn):
        return conn.weight.abs() + 1e-3 * (hash(conn.layer) % 997) * conn.row


class Drawing(_Doing):
    """Draws from torch's generator."""

    def score(self, conn):
        return torch.rand(conn.nnz)


class Seeding(_Doing):
    """Seeds everybody's generators, so that its own draws repeat."""

    def score(self, conn):
        random.seed(0)
        np.random.seed(0)
        return conn.weight.abs()


class Mutating(_Doing):
    """Writes into the weights."""

    def score(self, conn):
        return conn.weight.abs_()


class LyingSchema(_Doing):
    """Its schema has a bound that the class does not know."""

    power: float = Field(1.0, description="of the weight", json_schema_extra={"minimum": 0})


class DefaultOutside(_Doing):
    """Its default is not what its schema allows."""

    power: float = Field(2.0, description="of the weight", json_schema_extra={"maximum": 1})


class TakesAnything(_Doing):
    """Ignores misspelt parameters."""

    model_config: ClassVar[Any] = {"extra": "ignore"}


class Unpicklable(_Doing):
    """Holds a function."""

    model_config: ClassVar[Any] = {"arbitrary_types_allowed": True}
    keep: Any = Field(default=None, description="how to choose")

    def model_dump(self, **_):
        return {"keep": lambda score, n: keep_best(score, n)}


IN_USE = "leaves_its_input_alone"
FAULTS = [
    # fault, plugin, check that names it, words of its message
    ("mutating", Mutating(), "leaves_its_input_alone", "changed: weight"),
    ("non-deterministic", Drawing(), "draws_from_its_stream_alone", "drew from or seeded that of torch"),
    ("seeding others' generators", Seeding(), "draws_from_its_stream_alone", "random and numpy.random"),
    ("hash() of a text", Hashes(), "does_not_depend_on_hash", "in score"),
    ("leaking tensors", KeepsTensors(), "leaks_nothing", "480 bytes of tensors per call"),
    ("leaking numbers", KeepsNumbers(), "leaks_nothing", "Python objects per call"),
    ("leaking threads", doing(_start_thread), "leaks_nothing", "1 threads per call, such as left-behind"),
    ("leaking open files", doing(_open_file), "leaks_nothing", "1 open files per call, such as /dev/null"),
    ("default dtype", doing(lambda: torch.set_default_dtype(torch.float64)), IN_USE, "torch's default dtype left as it was"),
    ("default device", doing(lambda: torch.set_default_device("meta")), IN_USE, "torch's default device left as it was"),
    ("grad mode", doing(lambda: torch.set_grad_enabled(False)), IN_USE, "gradients being recorded"),
    ("inference mode", doing(lambda: _KEPT.append(torch.inference_mode()) or _KEPT[-1].__enter__()), IN_USE, "inference mode left"),
    ("deterministic flag", doing(lambda: torch.use_deterministic_algorithms(True)), IN_USE, "deterministic algorithms"),
    ("threads", doing(lambda: torch.set_num_threads(torch.get_num_threads() + 1)), IN_USE, "torch's number of threads"),
    ("matmul precision", doing(lambda: torch.set_float32_matmul_precision("medium")), IN_USE, "got:      'medium'"),
    ("working folder", doing(lambda: os.chdir("/")), IN_USE, "the working folder left as it was"),
    ("environment", doing(lambda: os.environ.update(SF_POISON="1")), IN_USE, "SF_POISON: '1' (was unset)"),
    ("import path", doing(lambda: sys.path.append("/poison")), IN_USE, "added '/poison'"),
    ("warnings", doing(lambda: warnings.simplefilter("ignore")), IN_USE, "the warnings filters left as it was"),
    ("recursion limit", doing(lambda: sys.setrecursionlimit(5000)), IN_USE, "got:      5000"),
    ("output", doing(lambda: setattr(sys, "stdout", sys.stderr)), IN_USE, "sys.stdout left as it was"),
    ("signals", doing(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)), IN_USE, "SIGTERM"),
    ("patched function", doing(lambda: setattr(torch, "relu", torch.tanh)), IN_USE, "torch.relu left as it was"),
    ("patched method", doing(lambda: setattr(torch.Tensor, "abs_", torch.Tensor.abs)), IN_USE, "torch.Tensor.abs_ left"),
    ("sys.exit", doing(lambda: sys.exit(4)), IN_USE, "sys.exit(4) at test_wrong_manners.py"),
    ("os._exit", doing(lambda: os._exit(0)), IN_USE, "os._exit(0) at test_wrong_manners.py"),
    ("os._exit, swallowed", doing(_swallow_own_exit), IN_USE, "os._exit(3) at test_wrong_manners.py"),
    ("os.abort", doing(lambda: os.abort()), IN_USE, "os.abort() at"),
    ("killing itself", doing(lambda: os.kill(os.getpid(), signal.SIGKILL)), IN_USE, "os.kill("),
    ("KeyboardInterrupt", doing(_interrupt), IN_USE, "raise KeyboardInterrupt at"),
    ("schema that binds nobody", LyingSchema(), "is_refused_alike", "the class takes it"),
    ("default outside its bounds", DefaultOutside(), "has_a_json_schema", "2.0 is greater than the maximum of 1"),
    ("unknown parameters taken", TakesAnything(), "is_refused_alike", "no_such_parameter=1"),
    ("parameters that do not pickle", Unpicklable(), "travels_between_processes", "hyper-parameters that pickle"),
]


_SLOW = ("leaking numbers", "leaking threads", "leaking open files")


@pytest.mark.parametrize(
    ("plugin", "check", "words"),
    [pytest.param(*case, id=fault, marks=[pytest.mark.slow] if fault in _SLOW else []) for fault, *case in FAULTS],
)
def test_the_fault_is_named_and_undone(plugin, check, words):
    before = _process()
    problem = outcome_of(plugin, check).problem
    assert words in problem
    assert "mend:" in problem
    assert _process() == before


def _process():
    """What the faults above change."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        os.getcwd(),
        dict(os.environ),
        list(sys.path),
        list(warnings.filters),
        sys.getrecursionlimit(),
        sys.stdout,
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGALRM),
        torch.relu,
        torch.Tensor.abs_,
        os._exit,
        random.getstate(),
        torch.get_rng_state().tolist(),
    )


def test_the_plugin_that_every_fault_is_put_into_is_right():
    names = {check for _, _, check, _ in FAULTS} - {"leaks_nothing"}
    assert {name: outcome_of(_Doing(), name).problem for name in names} == dict.fromkeys(names, "")


@pytest.mark.parametrize("work", [_loop, _swallowing_loop])
def test_a_loop_is_ended_and_its_line_named(work):
    problem = outcome_of(doing(work), IN_USE, timeout_s=0.2).problem
    assert "expected: an end within 0.2 s" in problem
    assert "at test_wrong_manners.py:" in problem
    assert "in _loop: time.sleep(0.001)" in problem


@pytest.mark.slow
def test_what_keeps_nothing_leaks_nothing():
    assert outcome_of(_Doing(), "leaks_nothing").problem == ""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="child processes are listed on Linux")
def test_children_left_behind_are_counted():
    problem = outcome_of(doing(_start_process), "leaks_nothing").problem
    for child in filter(None, _KEPT):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert "1 child processes per call" in problem
