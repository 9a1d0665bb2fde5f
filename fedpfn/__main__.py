"""``python -m fedpfn``: the command ``fedpfn``.

It is found through its entry point: this package lies below the command line and does not import it.
"""

from importlib.metadata import entry_points

if __name__ == "__main__":
    next(iter(entry_points(group="console_scripts", name="fedpfn"))).load()()
