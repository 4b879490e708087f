"""The command as a process: `twowalls`, and `python -m sim`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command; Ctrl-C while its modules are still being imported ends like any other, without a traceback."""
    try:
        from sim.cli import main as command

        command()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
