"""``python -m fedpfn``: the command ``fedpfn``.

The command is found through its entry point, since this package lies below the command line and must not import it.
"""

import os
import sys

if __name__ == "__main__":
    # `python -m` searches the working directory first, where a user's clients/ or random.py would hide needed modules
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH120
        del sys.path[0]

    from importlib.metadata import entry_points

    try:
        next(iter(entry_points(group="console_scripts", name="fedpfn"))).load()()
    except KeyboardInterrupt:
        # interrupted while the command line was being imported; after that the command line reports it
        print("stopped", file=sys.stderr)
        sys.exit(130)
