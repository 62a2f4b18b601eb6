"""Run the command line, and turn errors that a user can fix into two lines and an exit code."""

import sys

from victorctl.cli import app
from victorctl.errors import CheckFailed, VictorError


def main() -> None:
    """Run `victorctl`; anything but a `VictorError` keeps its traceback: our fault."""
    try:
        app(prog_name="victorctl")
    except VictorError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3 if isinstance(error, CheckFailed) else 1)


if __name__ == "__main__":
    main()
