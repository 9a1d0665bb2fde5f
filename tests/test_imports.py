"""Import strings: what they load, and a message of its own for each way one can be wrong."""

import importlib
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from toys import says

from experiments.run_words import read_run_config
from fedpfn import imports
from fedpfn.imports import absolute_reference, is_reference, load, look_in, near_reference, resolve
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import key_specs

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
    assert says(str(caught.value), repr(reference), "import string", "'package.module:name'", "'path/to/file.py:name'")


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


NET = "class Net:\n    pass\n\nimported = []\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder where the command is typed; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(imports, "_folders", [])
    before = set(sys.modules)
    look_in(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write_file(path: Path, source: str = NET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def test_a_users_module_hides_no_package_installed_in_editable_mode(folder: Path, tmp_path_factory: Any) -> None:
    installed = tmp_path_factory.mktemp("installed")
    write_file(installed / "planted_package.py", "WHOSE = 'installed'\n")
    write_file(folder / "planted_package.py", "WHOSE = 'the user'\n")
    write_file(folder / "planted_module.py", "WHOSE = 'the user'\n")

    class Editable:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            return PathFinder.find_spec(name, [str(installed)])

    # such finders are added when Python starts, and behind that of sys.path
    sys.meta_path.append(Editable)
    look_in(folder)
    assert importlib.import_module("planted_package").WHOSE == "installed"
    assert load("planted_module:WHOSE") == "the user"
    with pytest.raises(ValueError, match="taken by an installed package"):
        load("planted_package:WHOSE")


def test_a_file_is_loaded_by_its_path_once(folder: Path) -> None:
    file = write_file(folder / "my nets" / "models-v2.py")
    found = load("my nets/models-v2.py:Net")
    assert found is load(f"{file}:Net") is load(absolute_reference("my nets/models-v2.py:Net", folder))
    assert pickle.loads(pickle.dumps(found)) is found


def test_files_of_the_same_name_are_told_apart_and_hide_nothing(folder: Path) -> None:
    files = [write_file(folder / name / "json.py") for name in ("one", "two")]
    one, two = (load(f"{file}:Net") for file in files)
    assert one is not two and load("json:dumps") is json.dumps


def test_a_file_finds_what_lies_next_to_it(folder: Path) -> None:
    write_file(folder / "deep" / "planted_layers.py", "width = 3\n")
    write_file(folder / "deep" / "models.py", "from planted_layers import width\n")
    assert load("deep/models.py:width") == 3


def test_a_file_in_the_place_of_one_of_our_packages_can_be_loaded(folder: Path) -> None:
    write_file(folder / "experiments" / "models.py")
    assert load("experiments/models.py:Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0\n", "ZeroDivisionError"),
        ("import no_such_module_here\n", "needs 'no_such_module_here'"),
        ("", "has no 'Net'"),
    ],
)
def test_a_file_that_is_no_good_says_why_each_time(folder: Path, source: str, words: str) -> None:
    write_file(folder / "models.py", source)
    assert words in fault("models.py:Net")
    assert words in fault("models.py:Net")


def test_an_absent_file_is_named_with_the_place_where_it_was_expected(folder: Path) -> None:
    assert f"no file {folder / 'nets' / 'models.py'}" in fault("nets/models.py:Net")


@pytest.mark.parametrize(
    ("file", "reference", "way_out"),
    [
        ("experiments/models.py", "experiments.models:Net", "experiments/models.py:Net"),
        ("experiments/cli.py", "experiments.cli:app", "experiments/cli.py:app"),
        ("clients.py", "clients:Net", "clients.py:Net"),
        ("strategies/__init__.py", "strategies:Net", "strategies/__init__.py:Net"),
        ("partitions/mine/__init__.py", "partitions.mine:Net.part", "partitions/mine/__init__.py:Net.part"),
    ],
)
def test_a_module_of_the_users_that_an_installed_one_hides_is_told_the_way_out(
    folder: Path, file: str, reference: str, way_out: str
) -> None:
    write_file(folder / file)
    message = fault(reference)
    assert "is taken by an installed package" in message and repr(way_out) in message


def test_a_module_of_the_users_that_nothing_hides_is_theirs(folder: Path) -> None:
    write_file(folder / "planted_project" / "models.py")
    assert load("planted_project.models:Net").__module__ == "planted_project.models"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("my_cnn.py", "my_cnn.py:Name"),
        ("nets/my_cnn.py", "nets/my_cnn.py:Name"),
        ("my_cnn.MyCNN", "my_cnn:MyCNN"),
        ("my_cnn", "my_cnn:Name"),
        ("torch.nn.Linear", "torch.nn:Linear"),
        ("my_cnn:MyCNN", None),
        ("per-rund", None),
        ("resnet21", None),
        ("nowhere.at_all", None),
        ("", None),
    ],
)
def test_a_reference_without_its_colon_is_recognised(folder: Path, text: str, meant: str | None) -> None:
    write_file(folder / "my_cnn.py")
    assert near_reference(text) == meant


def test_only_the_path_of_a_file_is_made_absolute(tmp_path: Path) -> None:
    assert absolute_reference("a/b.py:C.d", tmp_path) == f"{tmp_path.resolve()}/a/b.py:C.d"
    for text in (f"{tmp_path.resolve()}/b.py:C", "a.b:C", "mlp", "", "a/b.py"):
        assert absolute_reference(text, tmp_path) == text


@pytest.mark.parametrize(
    "key", [*(spec.name for spec in key_specs(RunConfig) if spec.own), "data.name", "mask.schedule"]
)
def test_files_in_settings_are_looked_for_from_the_working_directory(key: str, tmp_path: Path) -> None:
    config = read_run_config([f"{key}=own/part.py:Part"], file=None, workdir=tmp_path)
    assert config.flat()[key] == f"{tmp_path.resolve()}/own/part.py:Part"


def test_arguments_of_a_part_are_unchanged(tmp_path: Path) -> None:
    config = read_run_config(["model.name=a.py:Net", "model.args=inner=b.py:Net"], file=None, workdir=tmp_path)
    assert (config.model.name, config.model.args) == (f"{tmp_path.resolve()}/a.py:Net", "inner=b.py:Net")


def test_each_of_several_measures_is_looked_for_from_the_working_directory(tmp_path: Path) -> None:
    config = read_run_config(["measures=a.py:x, b.py:y,-fusion"], file=None, workdir=tmp_path)
    here = tmp_path.resolve()
    assert config.measures == f"{here}/a.py:x,{here}/b.py:y,-fusion"
