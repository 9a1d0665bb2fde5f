"""Docstrings: their examples say what the code does, and their text can be shown by a browser."""

import ast
import doctest
import importlib
import pkgutil
import re
from itertools import pairwise
from pathlib import Path

import pytest

import clients
import experiments
import fedpfn
import partitions
import strategies

SOURCES = {
    module.name: Path(module.module_finder.find_spec(module.name, None).origin).read_text(encoding="utf-8")  # type: ignore
    for package in (fedpfn, partitions, strategies, clients, experiments)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # the benchmark's peers are imported in environments of their own
    if not module.name.endswith("_driver")
}


def outside_code(docstring: str) -> str:
    """Return what a page of the API reference shows as text: without literals, indented formulae and examples."""
    lines = re.sub(r"``.+?``", "", docstring, flags=re.DOTALL).splitlines()
    formulae, kept = False, []
    for before, line in pairwise(["", *lines]):
        formulae = line.startswith("    ") and (not before.strip() or formulae)
        if not formulae and not line.startswith((">>>", "...")):
            kept.append(line)
    return "\n".join(kept)


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if not name.startswith("experiments.")))
def test_the_docstrings_of_a_module_survive_a_browser(name: str) -> None:
    """``<u, v>`` is a tag to it, and shown as nothing."""
    tree = ast.parse(SOURCES[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            assert not re.search(r"<[a-zA-Z/!]", outside_code(docstring)), docstring
            assert docstring.count("``") % 2 == 0, docstring


def test_there_are_modules_to_look_through() -> None:
    assert "fedpfn.params" in SOURCES and ">>> " in SOURCES["fedpfn.lmc.barrier"]


@pytest.mark.parametrize("name", sorted(name for name, source in SOURCES.items() if ">>> " in source))
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(name)
    # a package shows the docstrings of what it re-exports too: those are run where they are written
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 < found.attempted
