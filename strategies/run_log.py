"""The log of a run in Flower's own runtime, kept in the run folder next to the results."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Flower's logger, which this project uses as well
_LOGGER = logging.getLogger("flwr")


@contextmanager
def keeping_log(path: Path) -> Iterator[None]:
    """Write the logs of Flower and this project, and how the block ended, to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    _LOGGER.addHandler(handler)
    try:
        yield
        _LOGGER.info("The run is complete: %s", path.parent)
    except Exception as error:
        _LOGGER.error("The run failed: %s: %s", type(error).__name__, error)
        raise
    finally:
        _LOGGER.removeHandler(handler)
        handler.close()
