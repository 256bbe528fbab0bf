"""What the kit says of manners, how its messages teach, and how its decorator runs; wrong plugins of each family have tables of their own."""

from itertools import islice

import pytest
from pydantic import Field
from sparsefleet_plugins.pruning.magnitude import Magnitude

from sparsefleet import Pruner, UserError
from sparsefleet.testing import check, conformance, run_checks

pytest_plugins = ["pytester"]


class _Pruner(Pruner):
    """Wrong in one way."""

    name = "wrong"


class Mutating(_Pruner):
    def score(self, conn):
        return conn.weight.abs_()


def test_wrong_manners():
    class NoHelp(Magnitude):
        name = "No Help"
        power: float = 1.0

    NoHelp.__doc__ = ""
    found = [outcome.check for outcome in islice(run_checks(NoHelp()), 9) if outcome.problem]
    assert found == ["has_a_name", "explains_itself", "bounds_its_numbers"]


class Raising(_Pruner):
    def score(self, conn):
        return self.squared(conn.weight)

    def squared(self, weight):
        return weight.squared_magnitude()


def test_a_plugin_that_does_not_run_is_told_so_once_by_its_own_line():
    outcomes = list(run_checks(Raising()))
    assert outcomes[0].check == "runs"
    first, second, *rest = outcomes[0].problem.splitlines()
    assert first.startswith("test_wrong_plugins.py:")
    assert first.endswith("in squared: return weight.squared_magnitude()")
    assert second.strip() == "raised AttributeError: 'Tensor' object has no attribute 'squared_magnitude'"
    assert rest[-1].endswith(" checks that use it were not run")
    assert "sparsefleet/testing" not in outcomes[0].problem
    assert not {"draws_from_its_stream_alone", "counts_exactly"} & {outcome.check for outcome in outcomes}
    assert "bounds_its_numbers" in {outcome.check for outcome in outcomes}


def test_messages_teach():
    (problem,) = [text for text in check(Mutating()) if "leaves_its_input_alone" in text]
    assert "expected: unchanged connections" in problem
    assert "got:      changed: weight" in problem
    assert "mend:     use x.abs(), not x.abs_()" in problem


class Power(Pruner):
    """A right one, with a hyper-parameter."""

    name = "power"
    exponent: float = Field(1.0, gt=0, description="of the magnitude")

    def score(self, conn):
        return conn.weight.abs() ** self.exponent


@conformance(Power(), Power(exponent=2))
def test_the_decorator_runs_every_check(check):
    check()


def test_excused_checks_are_expected_to_fail(pytester):
    pytester.makepyfile(
        """
        from sparsefleet import Pruner
        from sparsefleet.testing import conformance

        class Mutating(Pruner):
            "Wrong in one way."
            name = "wrong"

            def score(self, conn):
                return conn.weight.abs_()

        @conformance(Mutating(), except_for={"leaves_its_input_alone": "it writes", "is_immutable": "for no reason"})
        def test_conforms(check):
            check()
        """
    )
    result = pytester.runpytest("-q", "-rxf", "-k", "leaves_its_input or is_immutable")
    result.assert_outcomes(xfailed=1, failed=1)
    result.stdout.fnmatch_lines_random(
        ["*leaves_its_input_alone*it writes*", "*is_immutable: it passes, so except_for need not excuse it*"]
    )


def test_an_excused_check_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="did you mean 'is_deterministic'"):
        conformance(Power(), except_for={"is_determinstic": "a misspelling"})


def test_in_pytest_a_plugin_that_does_not_run_is_one_failure(pytester):
    pytester.makepyfile(
        """
        from sparsefleet import Pruner
        from sparsefleet.testing import conformance

        class Raising(Pruner):
            "Wrong in one way."
            name = "wrong"

            def score(self, conn):
                return conn.weights

        @conformance(Raising())
        def test_conforms(check):
            check()
        """
    )
    result = pytester.runpytest("-q", "-rs", "-k", "runs or exactly or is_immutable")
    result.assert_outcomes(failed=1, skipped=1, passed=1)
    said = result.stdout.str()
    assert "in score: return conn.weights" in said
    assert len(said.splitlines()) < 40
