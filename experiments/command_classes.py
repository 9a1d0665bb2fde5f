"""The classes from which typer builds the commands: help that fills lines, also of positional arguments, and hints for
mistyped words.

Flower requires typer below 0.21, whose arguments lose their help under click 8.5: ``TyperArgument`` sets ``help`` and
then calls the constructor of click's ``Argument``, which since 8.5 has a ``help`` of its own and sets it to None.
``Command`` restores it from the annotations.
"""

from collections.abc import Callable
from typing import Any, get_type_hints

import click
from typer import Typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import ArgumentInfo

SETTINGS = "KEY=VALUE"

# click 8.5 suggests commands itself; typer would repeat the suggestion
_CLICK_SUGGESTS = hasattr(click.exceptions, "NoSuchCommand")


class Command(TyperCommand):
    """A command whose positional arguments keep their help, and which explains ``--rounds 5``."""

    def __init__(self, name: str | None, *, callback: Callable[..., Any] | None = None, **settings: Any) -> None:
        super().__init__(name, callback=callback, **settings)
        self.help = reflowed(self.help)
        hints = get_type_hints(callback, include_extras=True) if callback else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and not parameter.help:
                notes = getattr(hints.get(parameter.name or ""), "__metadata__", ())
                parameter.help = next((note.help for note in notes if isinstance(note, ArgumentInfo)), None)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; for a setting that is written as an option, the error shows how to write it."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if not ctx.resilient_parsing and self._takes_settings() and (hint := setting_hint(error, typed)):
                raise click.UsageError(f"No such option {error.option_name!r}. {hint}", ctx=ctx) from error
            raise

    def _takes_settings(self) -> bool:
        return any(SETTINGS in (parameter.metavar or "") for parameter in self.params if parameter.nargs == -1)


class Group(TyperGroup):
    """A group whose unknown commands get one suggestion, not two."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"suggest_commands": not _CLICK_SUGGESTS})
        self.help = reflowed(self.help)


class App(Typer):
    """A typer application with the command class above, in which ``-h`` works everywhere."""

    def __init__(self, **settings: Any) -> None:
        help_names = {"help_option_names": ["-h", "--help"]}
        super().__init__(cls=Group, context_settings=help_names, no_args_is_help=True, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a command as ``Typer.command`` does."""
        return super().command(name, cls=Command, **settings)


def reflowed(text: str | None) -> str | None:
    """Return a docstring with each paragraph on one line: typer would keep line ends, and a terminal would add its own.

    >>> reflowed("One\\nparagraph.\\n\\nAnother.")
    'One paragraph.\\n\\nAnother.'
    """
    return text and "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def setting_hint(error: click.NoSuchOption, typed: list[str]) -> str | None:
    """Return how an unknown long option is written as a setting; None if it is more likely a mistyped option.

    >>> setting_hint(click.NoSuchOption("--rounds"), ["--rounds", "5"])
    'Settings are written without dashes: rounds=5'
    >>> setting_hint(click.NoSuchOption("--train.lr"), ["seed=1", "--train.lr=0.1"])
    'Settings are written without dashes: train.lr=0.1'
    """
    name = error.option_name
    if not name.startswith("--") or (error.possibilities and "." not in name):
        return None
    place = next((i for i, word in enumerate(typed) if word.partition("=")[0] == name), None)
    if place is None:
        return None
    value = typed[place].partition("=")[2]
    if not value:
        following = typed[place + 1 : place + 2]
        value = following[0] if following and "=" not in following[0] and following[0][:1] != "-" else "VALUE"
    return f"Settings are written without dashes: {name.removeprefix('--')}={value}"
