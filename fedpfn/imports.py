"""Custom parts by import string: ``"package.module:name"``, with a message of its own for each way it can be wrong."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def look_in(folder: Path) -> None:
    """Let modules in ``folder`` be found, after everything installed: a user's random.py must not hide Python's."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def is_reference(text: str) -> bool:
    """Tell whether ``text`` names an object by import string rather than a built-in by alias."""
    return ":" in text


def colon_hint(name: str) -> str | None:
    """Return how a name that looks like a file or a dotted path is written as an import string, else None.

    >>> colon_hint("my_cnn.MyCNN")
    "write it as 'my_cnn:MyCNN', with a colon before the name"
    """
    module, dot, attribute = name.removesuffix(".py").replace("/", ".").rpartition(".")
    if name.endswith(".py"):
        module, attribute = f"{module}{dot}{attribute}", "NAME"
    reference = f"{module}:{attribute}"
    if is_reference(name) or not _REFERENCE.fullmatch(reference):
        return None
    return f"write it as {reference!r}, with a colon before the name"


def resolve(name: str) -> Any:
    """Return the object that ``name`` refers to where it is an import string, else the name itself."""
    return load(name) if is_reference(name) else name


def load(reference: str) -> Any:
    """Return the object that ``"package.module:name"`` names.

    Raises ``ValueError`` in one line: for a malformed reference, a module that is not found, a module that fails while
    it is imported (with its own error), and a name that the module does not have.
    """
    if not _REFERENCE.fullmatch(reference):
        raise ValueError(f"{reference!r} is not an import string; expected 'package.module:name'")
    module_name, _, attributes = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ValueError(
                f"no module named {error.name!r} for {reference!r}; it is looked for in the folder where the command "
                "was typed and in the Python environment"
            ) from error
        raise ValueError(f"module {module_name!r} of {reference!r} needs {error.name!r}, which is absent") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"module {module_name!r} of {reference!r} fails on import: {error!r}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"module {module_name!r} has no {attributes!r} (asked for by {reference!r})")
        found = getattr(found, attribute)
    return found
