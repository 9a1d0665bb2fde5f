"""The examples in docstrings say what the code does."""

import doctest
import importlib
import pkgutil

import pytest

import clients
import experiments
import fedpfn
import partitions
import strategies

MODULES = sorted(
    module.name
    for package in (fedpfn, partitions, strategies, clients, experiments)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    # the benchmark's peers are imported in environments of their own
    if not module.name.endswith("_driver")
)


def test_there_are_modules_to_look_through() -> None:
    assert "fedpfn.params" in MODULES and "fedpfn.lmc.barrier" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(name)
    # a package shows the docstrings of what it re-exports too: those are run where they are written
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0
