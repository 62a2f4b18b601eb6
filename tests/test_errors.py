import pytest

from victorctl.errors import CheckFailed, VictorError


def test_says_the_problem_and_below_it_the_fix():
    error = VictorError("registers is 0", fix="give at least 1")

    assert str(error) == "registers is 0\n  fix: give at least 1"
    assert (error.problem, error.fix) == ("registers is 0", "give at least 1")


def test_cannot_be_raised_without_a_fix():
    with pytest.raises(TypeError, match="fix"):
        VictorError("registers is 0")


def test_a_failed_check_is_a_victor_error_too():
    assert issubclass(CheckFailed, VictorError)
