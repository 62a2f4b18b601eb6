"""Run the command line, and turn errors that a user can fix into two lines and an exit code."""

import errno
import signal
import sys

from victorctl import launch
from victorctl.errors import CheckFailed, VictorError


def main() -> None:
    """Run `victorctl`; anything but a `VictorError` keeps its traceback: our fault."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up first
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may know fewer signs than we print
    try:
        from victorctl.cli import app

        try:
            app(prog_name="victorctl")
        finally:
            sys.stdout.flush()
    except VictorError as error:
        launch.let_the_first_speak()  # what is wrong for all is said once
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3 if isinstance(error, CheckFailed) else 1)
    except KeyboardInterrupt:  # while the command line itself was loaded
        sys.exit(130)
    except PermissionError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"error: {error.filename}: you may not read or write it\n")
        sys.stderr.write(f"  fix: ls -ld {error.filename}, and change its permissions\n")
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write("error: no space left for what is printed\n  fix: free some space\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
