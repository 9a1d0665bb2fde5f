"""``python -m fedpfn``: the command ``fedpfn``.

It is found through its entry point: this package lies below the command line and does not import it.
"""

import os
import sys

if __name__ == "__main__":
    # `python -m` looks in the working directory first, where a user's clients/ or random.py would hide what is needed
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH120
        del sys.path[0]

    from importlib.metadata import entry_points

    try:
        next(iter(entry_points(group="console_scripts", name="fedpfn"))).load()()
    except KeyboardInterrupt:
        # while the command line was imported; later it says so itself
        print("stopped", file=sys.stderr)
        sys.exit(130)
