"""Run the command line, and turn errors that a user can fix into two lines and an exit code."""

import signal
import sys

from victorctl.cli import app
from victorctl.errors import CheckFailed, VictorError


def main() -> None:
    """Run `victorctl`; anything but a `VictorError` keeps its traceback: our fault."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up first
    try:
        app(prog_name="victorctl")
    except VictorError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3 if isinstance(error, CheckFailed) else 1)


if __name__ == "__main__":
    main()
