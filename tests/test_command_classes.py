"""What every command does alike: help of its positional arguments, ``-h``, one suggestion, hints at settings."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import fedpfn
from experiments.cli import app, explanation
from experiments.runtime.failure import RunFailedError

COMMANDS = get_command(app)


def leaves(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, *names, name)
    else:
        yield names, command


LEAVES = dict(leaves(COMMANDS))


def invoke(*words: str, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, list(words), env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"})
    assert result.exit_code == status, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("names", LEAVES, ids=" ".join)
def test_help_shows_what_each_positional_argument_is_for(names: tuple[str, ...]) -> None:
    shown = invoke(*names, "-h")
    assert shown == invoke(*names, "--help")
    for parameter in LEAVES[names].params:
        if isinstance(parameter, click.Argument):
            help = parameter.help  # type: ignore[attr-defined]
            assert help and " ".join(help.split()) in shown


@pytest.mark.parametrize("names", [(), ("lmc",)])
def test_groups_have_the_short_help_too(names: tuple[str, ...]) -> None:
    assert "Usage" in invoke(*names, "-h")


@pytest.mark.parametrize(("words", "meant"), [(["rnu"], "run"), (["lmc", "brrier"], "barrier")])
def test_a_mistyped_command_gets_one_suggestion(words: list[str], meant: str) -> None:
    assert invoke(*words, status=2).count(f"Did you mean {meant!r}") == 1


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["run", "--rounds", "5"], "rounds=5"),
        (["run", "seed=1", "--train.lr=0.1"], "train.lr=0.1"),
        (["sweep", "file.yaml", "--data.root"], "data.root=VALUE"),
        (["run", "--rounds", "seed=3"], "rounds=VALUE"),
        (["lmc", "barrier", "a", "b", "--model.width", "16"], "model.width=16"),
    ],
)
def test_a_setting_typed_as_an_option_is_shown_as_a_setting(words: list[str], setting: str) -> None:
    assert f"written without dashes: {setting}" in invoke(*words, status=2)


@pytest.mark.parametrize("words", [["run", "--actor", "5"], ["run", "-x"], ["show", "--rounds", "5"]])
def test_a_mistyped_option_is_no_setting(words: list[str]) -> None:
    assert "without dashes" not in invoke(*words, status=2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunFailedError("no actors"), "no actors"),
        (ValueError("no such folder"), "no such folder"),
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), "cannot use /proc/x: no such file or directory"),
        (OSError("from somewhere"), None),
        (KeyError("a fault of ours"), None),
    ],
)
def test_known_errors_end_in_a_message_and_others_in_a_traceback(error: Exception, message: str | None) -> None:
    assert explanation(error) == message


LIGHT = "assert not {'torch', 'flwr', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"


def python(*words: str, folder: Path) -> list[str]:
    """Run Python with ``words`` outside the repository and return the words that it prints."""
    result = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_command_line_is_there_before_pytorch(tmp_path: Path) -> None:
    python("-c", f"import sys, experiments.cli; {LIGHT}", folder=tmp_path)


def test_the_package_says_its_version_and_is_light(tmp_path: Path) -> None:
    assert python("-c", f"import sys, fedpfn; print(fedpfn.__version__); {LIGHT}", folder=tmp_path) == [
        version("fedpfn")
    ]
    assert not hasattr(fedpfn, "no_such_name")


def test_the_package_runs_as_the_command_whatever_lies_in_the_folder(tmp_path: Path) -> None:
    for name in ("experiments", "random"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hides what the command needs')")
    assert "output.tracker" in python("-m", "fedpfn", "keys", "tracker", folder=tmp_path)


HEAVY = {"matplotlib", "pandas", "jinja2", "sklearn", "typer"}


def test_the_library_is_imported_without_what_only_the_application_needs(tmp_path: Path) -> None:
    """What Flower and PyTorch import themselves is theirs: Flower's own ServerApp comes with typer."""
    imports = "import sys, torch, flwr.app, flwr.clientapp, flwr.serverapp; before = set(sys.modules)"
    for package in ("partitions", "fedpfn.lmc", "fedpfn.models", "strategies", "clients"):
        imports += (
            f"; import {package}; print(*('{package}:' + name for name in {HEAVY!r} & set(sys.modules) - before))"
        )
    assert python("-c", imports, folder=tmp_path) == []
