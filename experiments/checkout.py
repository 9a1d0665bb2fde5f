"""Commands that only a checkout of the repository has, not the wheel: the benchmark and the faults."""

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer

Words = Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", help="anything: nothing is run")]


def add_checkout_command(app: typer.Typer, name: str) -> None:
    """Add ``fedpfn NAME`` from ``experiments.NAME.cli`` to ``app``; without it, add a command that says where it is."""
    package = f"experiments.{name}"
    try:
        module = import_module(f"{package}.cli")
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        lenient = {"ignore_unknown_options": True}
        app.command(name, help="Only in a checkout of the repository.", context_settings=lenient)(_absent(name))
    else:
        app.command(name, epilog=module.EPILOG)(getattr(module, name))


def _absent(name: str) -> Callable[..., Any]:
    def explain(words: Words = None) -> None:
        raise ValueError(
            f"`fedpfn {name}` is not in the installed package; run it from a checkout of the repository, "
            "after `pip install -e .` there"
        )

    return explain
