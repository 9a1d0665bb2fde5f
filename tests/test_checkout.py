"""Commands that the wheel leaves out: there in a checkout, and elsewhere one clear line."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments import checkout
from experiments.checkout import add_checkout_command
from experiments.command_classes import App

CONFIG = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["tool"]


def app_of(name: str) -> App:
    app = App()
    add_checkout_command(app, name)
    app.command("other")(lambda: None)
    return app


@pytest.mark.parametrize("name", ["bench", "faults"])
def test_a_checkout_has_the_command(name: str) -> None:
    shown = CliRunner().invoke(app_of(name), [name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "--quick" in shown.output


def test_an_installed_wheel_says_where_the_command_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bench(name: str) -> Any:
        if name.startswith("experiments.bench"):
            raise ModuleNotFoundError("no such module", name="experiments.bench")
        return import_module(name)

    monkeypatch.setattr(checkout, "import_module", without_bench)
    ended = CliRunner().invoke(app_of("bench"), ["bench", "d", "--quick", "--out", "x"])
    assert isinstance(ended.exception, ValueError) and "\n" not in str(ended.exception)
    assert "`fedpfn bench` is not in the installed package" in str(ended.exception)
    assert "pip install -e ." in str(ended.exception)


def test_a_module_that_the_command_lacks_is_not_taken_for_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_torch(name: str) -> Any:
        raise ModuleNotFoundError("no torch", name="torch")

    monkeypatch.setattr(checkout, "import_module", without_torch)
    with pytest.raises(ModuleNotFoundError, match="no torch"):
        app_of("bench")


def test_the_wheel_has_the_packages_of_the_main_commands_and_no_others() -> None:
    setuptools = pytest.importorskip("setuptools")
    found = set(setuptools.find_packages(Path(__file__).parent.parent, **CONFIG["setuptools"]["packages"]["find"]))
    inside = {name.split(".")[1] for name in found if name.startswith("experiments.")}
    assert {"report", "sweep", "lab", "runtime"} <= inside and not inside & {"bench", "faults", "deployment"}
