"""The console script ``fedpfn``: imports the command line inside ``try``, so that Ctrl-C works from the start."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from experiments.cli import main as command

        command()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
