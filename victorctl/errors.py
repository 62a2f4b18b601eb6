"""Errors that a user can fix, each with its fix."""

from typing import Any


class VictorError(Exception):
    """Something the user can fix.

    Args:
        problem: What is wrong, with the offending value and where it came from.
        fix: What to type or change, as an instruction.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem}\n  fix: {fix}")
        self.problem = problem
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it come from another process as it was."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[VictorError], args: tuple[Any, ...], state: dict[str, Any]) -> VictorError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class CheckFailed(VictorError):  # noqa: N818  (it reads as what happened)
    """A check that was asked for did not hold; the command line leaves with 3 instead of 1."""
