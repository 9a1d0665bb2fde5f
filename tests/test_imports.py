"""Import strings: what they load, and a message of its own for each way one can be wrong."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpfn.imports import is_reference, load, resolve

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules to a folder on the path; whatever was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write_module(name: str, source: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def fault(reference: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(reference)
    message = str(caught.value)
    assert "\n" not in message
    assert reference in message
    return message


def test_a_reference_has_a_colon() -> None:
    assert is_reference("package.module:name")
    assert not is_reference("per-round")


def test_a_name_without_a_colon_resolves_to_itself() -> None:
    assert resolve("per-round") == "per-round"
    assert resolve("json:dumps") is json.dumps


def test_what_is_named_is_what_comes() -> None:
    assert load("json:dumps") is json.dumps
    assert load("json.decoder:JSONDecoder") is json.JSONDecoder


def test_a_name_inside_a_class_will_do() -> None:
    assert load("json:JSONDecoder.decode") is json.JSONDecoder.decode


def test_a_value_that_is_false_is_found_all_the_same(write: Write) -> None:
    write("planted_values", "nothing = None\nzero = 0\n")
    assert load("planted_values:nothing") is None
    assert load("planted_values:zero") == 0


MALFORMED = ["json", "json:", ":dumps", ":", "", "json dumps:x", "json:loads:dumps", "../x:y", ".x:y", "1x:y", "json:1"]


@pytest.mark.parametrize("reference", [*MALFORMED, "a-b:c", "json:dumps\n", " json:dumps"])
def test_a_malformed_reference_is_told_the_form(reference: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(reference)
    assert str(caught.value) == f"{reference!r} is not an import string; expected 'package.module:name'"


@pytest.mark.parametrize(
    ("reference", "absent"),
    [
        ("no_such_module_here:name", "no_such_module_here"),
        ("no_such_module_here.inner:name", "no_such_module_here"),
        ("json.no_such_part:name", "json.no_such_part"),
        ("json.decoder.part:name", "json.decoder.part"),
    ],
)
def test_an_absent_module_is_told_where_it_was_looked_for(reference: str, absent: str) -> None:
    message = fault(reference)
    assert message.startswith(f"no module named {absent!r}")
    assert "folder" in message and "environment" in message


def test_an_absent_name_is_told_with_its_module() -> None:
    assert fault("json:no_such_name").startswith("module 'json' has no 'no_such_name'")
    assert "has no 'JSONDecoder.no_such_name'" in fault("json:JSONDecoder.no_such_name")


def test_a_module_that_lacks_a_module_of_its_own_is_not_called_absent(write: Write) -> None:
    write("planted_needy", "import no_such_module_here\n")
    message = fault("planted_needy:name")
    assert message.startswith("module 'planted_needy'") and "needs 'no_such_module_here'" in message


def test_a_module_that_lacks_a_sibling_is_not_called_absent(write: Write) -> None:
    write("planted_package.__init__", "")
    write("planted_package.part", "import planted_package.other\n")
    assert "needs 'planted_package.other'" in fault("planted_package.part:name")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0\n", "ZeroDivisionError"),
        ("def broken(:\n", "SyntaxError"),
        ("from json import no_such_name\n", "ImportError"),
    ],
)
def test_a_module_that_fails_is_told_with_its_own_error(write: Write, source: str, words: str) -> None:
    write("planted_failing", source)
    message = fault("planted_failing:name")
    assert "fails on import" in message and words in message


def test_the_error_behind_a_fault_is_kept_for_the_traceback(write: Write) -> None:
    write("planted_raising", "raise RuntimeError('its own words')\n")
    with pytest.raises(ValueError, match="its own words") as caught:
        load("planted_raising:name")
    assert isinstance(caught.value.__cause__, RuntimeError)
