"""The console script ``fedpfn``: nothing is imported before Ctrl-C ends the command as it does later."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from experiments.cli import main as command

        command()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
