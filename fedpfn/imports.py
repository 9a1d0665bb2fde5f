"""Custom parts by reference: ``"package.module:name"``, or ``"path/to/file.py:name"`` for any Python file.

A module is looked up in the Python environment first and in the user's folder last, so that a user's ``random.py``
hides nothing. An installed module therefore hides a user's module of the same name: ``load`` reports this and suggests
the file's path instead. Each kind of faulty reference has its own message.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

EXPECTED = "expected 'package.module:name' or 'path/to/file.py:name'"

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FILE_REFERENCE = re.compile(r"(.+\.py):([A-Za-z_][\w.]*)")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_folders: list[Path] = []
_loading = threading.RLock()


class _UsersFolders:
    """Finds modules in the user's folders.

    It comes last of all finders. A folder at the end of ``sys.path`` would take precedence over packages installed in
    editable mode, whose own finder comes after that of ``sys.path``.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(folder) for folder in _folders]) if path is None else None


def look_in(folder: Path) -> None:
    """Make modules and files in ``folder`` importable, after everything installed."""
    if folder not in _folders:
        _folders.append(folder)
    if _UsersFolders in sys.meta_path:
        sys.meta_path.remove(_UsersFolders)
    sys.meta_path.append(_UsersFolders)


def folders() -> tuple[Path, ...]:
    """Return the folders that were given to ``look_in``, for a process that must find the same modules."""
    return tuple(_folders)


def is_reference(text: str) -> bool:
    """Return whether ``text`` is a reference to an object rather than the name of a built-in."""
    return ":" in text


def absolute_reference(text: str, folder: Path) -> str:
    """Return a file reference with an absolute path; any other text is returned unchanged.

    Processes of a run start in their own folders, where a relative path would resolve differently.

    Parameters
    ----------
    text
        A reference, or any other text.
    folder
        Folder that a relative path is relative to.

    Returns
    -------
    str
        The text; if it is a file reference, with its path resolved.

    Examples
    --------
    >>> absolute_reference("nets/models.py:Net", Path("/home/me"))
    '/home/me/nets/models.py:Net'
    >>> absolute_reference("models:Net", Path("/home/me")), absolute_reference("mlp", Path("/home/me"))
    ('models:Net', 'mlp')
    """
    if match := _FILE_REFERENCE.fullmatch(text):
        return f"{(folder / Path(match[1]).expanduser()).resolve()}:{match[2]}"
    return text


def near_reference(text: str) -> str | None:
    """Return the reference that ``text`` probably stands for if only its colon is missing, else None.

    >>> near_reference("my_cnn.py"), near_reference("json.JSONDecoder"), near_reference("fedavgg")
    ('my_cnn.py:Name', 'json:JSONDecoder', None)
    """
    if is_reference(text):
        return None
    if text.endswith(".py"):
        return f"{text}:Name"
    if not _DOTTED.fullmatch(text):
        return None
    module, _, name = text.rpartition(".")
    if not module:
        return f"{text}:Name" if _user_files(text) else None
    return f"{module}:{name}" if _user_files(module) or _is_installed(module.partition(".")[0]) else None


def colon_hint(text: str) -> str | None:
    """Return advice on how to write a reference whose colon is missing; None if ``text`` is not one.

    >>> colon_hint("my_cnn.MyCNN"), colon_hint("mlp")
    ("write it as 'my_cnn:MyCNN', with a colon before the name", None)
    """
    near = near_reference(text)
    if near is None and _DOTTED.fullmatch(text) and "." in text:
        near = ":".join(text.rsplit(".", 1))
    return f"write it as {near!r}, with a colon before the name" if near else None


def resolve(name: str) -> Any:
    """Return the object that ``name`` refers to if it is a reference, else the name itself."""
    return load(name) if is_reference(name) else name


def load(reference: str) -> Any:
    """Return the object that ``"package.module:name"`` or ``"path/to/file.py:name"`` names.

    A relative path is resolved against the folders given to ``look_in``, or else the working directory. A file is
    executed once per process, under a unique module name.

    Raises ``ValueError``, with a one-line message, for a malformed reference, a module or file that is not found, a
    module that an installed one hides, a module that fails on import (with its own error), and a name it lacks.
    """
    if match := _FILE_REFERENCE.fullmatch(reference):
        path, module_name, attributes = _find_file(match[1], reference), match[1], match[2]
        target: Any = _import(lambda: _import_file(path), module_name, reference)
    elif _REFERENCE.fullmatch(reference):
        module_name, _, attributes = reference.partition(":")
        target = _import(lambda: importlib.import_module(module_name), module_name, reference)
        _refuse_hidden(module_name, reference, target)
    else:
        raise ValueError(f"{reference!r} is not an import string; {EXPECTED}")
    for attribute in attributes.split("."):
        if not hasattr(target, attribute):
            raise ValueError(f"module {module_name!r} has no {attributes!r} (requested by {reference!r})")
        target = getattr(target, attribute)
    return target


def _import(import_it: Callable[[], ModuleType], module_name: str, reference: str) -> ModuleType:
    try:
        return import_it()
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            _refuse_hidden(module_name, reference, None)
            raise ValueError(
                f"no module named {error.name!r} for {reference!r}; fedpfn looks in the folder where the command "
                "was typed and in the Python environment"
            ) from error
        raise ValueError(
            f"module {module_name!r} of {reference!r} needs {error.name!r}, which is not installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"module {module_name!r} of {reference!r} fails on import: {error!r}") from error


def _find_file(path: str, reference: str) -> Path:
    file = Path(path).expanduser()
    places = [file] if file.is_absolute() else [folder / file for folder in _folders or [Path.cwd()]]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise ValueError(f"no file {' or '.join(str(place) for place in places)} for {reference!r}")


def _import_file(path: Path) -> ModuleType:
    """Execute a file as a module, once per process, under a name that distinguishes files with the same stem."""
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    with _loading:
        if name in sys.modules:
            return sys.modules[name]
        # as for a script, modules in its folder can be imported
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _is_installed(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ValueError:  # __main__ may have no spec
        return False


def _user_files(module_name: str) -> list[tuple[Path, Path]]:
    """Return the module's files in the user's folders, each with the folder in which it was found."""
    stem = Path(*module_name.split("."))
    names = (stem.with_suffix(".py"), stem / "__init__.py")
    return [(folder, name) for folder in _folders for name in names if (folder / name).is_file()]


def _refuse_hidden(module_name: str, reference: str, imported: ModuleType | None) -> None:
    """Raise ``ValueError`` if the user's folder has the module, but another was imported instead."""
    files = _user_files(module_name)
    origin = getattr(imported, "__file__", None)
    if not files or (origin and Path(origin).resolve() in {(folder / name).resolve() for folder, name in files}):
        return
    folder, name = files[0]
    top = module_name.partition(".")[0]
    raise ValueError(
        f"{reference!r}: the name {top!r} is taken by an installed package, which hides {folder / name}; "
        f"use the file's path, '{name}:{reference.partition(':')[2]}', or rename {folder / name.parts[0]}"
    )
