"""Write files atomically or line by line, and check what they contain."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedpfn.runs.yaml_text import parse_yaml

# no float has more digits before its decimal point
_MOST_DIGITS = 309
# a surrogate: half of a character outside Unicode's first plane, as JSON escapes it
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically, even if the machine crashes.

    Parameters
    ----------
    path
        The file, which is replaced if it exists.
    data
        Its content.
    """
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the complete file then appears at ``path``, or nothing if the block fails.

    Its mode follows the umask, whatever a library sets.
    """
    part = path.with_name(path.name + ".part")
    try:
        with naming(path):
            part.unlink(missing_ok=True)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)
            # synced before it is renamed: the renaming must not survive a crash that the content does not survive
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make a system error name ``path`` if it names no file: write errors do not say which file they concern."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically.

    Parameters
    ----------
    path
        The file, which is replaced if it exists.
    value
        Any value that ``finite`` can convert for JSON; non-finite numbers become null.
    """
    write_whole(path, to_json(value, indent=1))


def append_json(path: Path, value: Any) -> None:
    """Append ``value`` to a file as one line of JSON, which is on disk when this returns."""
    with naming(path), path.open("ab") as file:
        file.write(to_json(value) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is none. Raises a ``ValueError`` that names the file."""
    if not path.is_file():
        return None
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def parse_json(data: bytes) -> Any:
    """Return the value of JSON text; a lone surrogate, which cannot be written, becomes a question mark.

    Raises ``ValueError``, with a one-line message, also for values that this project never writes: NaN, numbers beyond
    the range of a float, nesting too deep for Python.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_short_int)
        if _SURROGATE.search(data):
            value = _whole_characters(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    except UnicodeError as error:
        raise ValueError(f"not text in UTF-8: {error.reason}") from error  # type: ignore[attr-defined]
    except RecursionError as error:
        raise ValueError("not JSON: it is nested too deeply") from error
    return value


def to_json(value: Any, indent: int | None = None) -> bytes:
    """Return ``value`` as JSON text: one line, unless indented."""
    return json.dumps(finite(value), indent=indent, allow_nan=False).encode()


def finite(value: Any) -> Any:
    """Return ``value`` in a form for JSON: non-finite numbers become None, NumPy's numbers become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the table in a YAML file. Raises a one-line ``ValueError`` if it cannot be read or is not a table."""
    try:
        tree = parse_yaml(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no table of keys")
    return tree


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(name): _whole_characters(item) for name, item in value.items()}
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"not JSON: {word} is not a number")


def _finite_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is larger than any float")
    return number


def _short_int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:20]}... is larger than any float")
    return int(text)
