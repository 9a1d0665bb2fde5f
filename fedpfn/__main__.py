"""``python -m fedpfn``: the command ``fedpfn``.

It is found through its entry point: this package lies below the command line and does not import it.
"""

import sys
from importlib.metadata import entry_points
from pathlib import Path

if __name__ == "__main__":
    # `python -m` looks in the working directory first, where a user's clients/ would hide the package of that name
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        del sys.path[0]
    next(iter(entry_points(group="console_scripts", name="fedpfn"))).load()()
