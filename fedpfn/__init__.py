"""The mathematics of federated neuron alignment: masks, freezing, training, barriers. Uses neither Flower nor Ray."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Look up the version of the installed distribution only when it is asked for."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("fedpfn")
