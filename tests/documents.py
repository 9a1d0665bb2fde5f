"""The README and the guides as a test reads them: their code blocks, their commands, and each command as it parses."""

import re
import shlex
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import click
from typer.main import get_command

from experiments.cli import app
from experiments.lab.config import LabConfig
from experiments.report.selection import baseline_words, read_words
from experiments.reproduce.studies import choose as choose_studies
from experiments.run_words import read_run_config
from experiments.sweep.cells import expand
from experiments.sweep.file import packaged_names, read_sweep
from experiments.sweep.selection import choose as choose_cells
from fedpfn.runs.config import RunConfig, parse_overrides
from fedpfn.runs.keys import key_specs

ROOT = Path(__file__).parent.parent
KEYS = set(RunConfig.parse().flat())
LAB_KEYS = {spec.name for spec in key_specs(LabConfig)}
# what a reader puts in: RUN, FILE, OUT, /abs/path, and an ellipsis
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_-]*|…|\.\.\.")


class Block(NamedTuple):
    """A fenced block: its language, nothing for commands, and its text."""

    kind: str
    text: str

    @property
    def module(self) -> str | None:
        """The name of the module that it is, by its first line, or None for code to run as it is."""
        named = re.match(r"# (\w+)\.py\n", self.text)
        return named[1] if named and self.kind == "python" else None


def pages() -> list[Path]:
    """Return every document but those that are generated, by path below the root."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    generated = ("build", "runs", "out", "results", "sweeps", "tests")
    return sorted(p for p in found if not any(part.startswith(".") or part in generated for part in p.parts))


def text_of(page: Path | str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: Path | str, title: str) -> str:
    """Return what stands under a heading, up to the next one of the same rank."""
    return text_of(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, kind: str | None = None) -> list[Block]:
    """Return the fenced blocks of a text, all or those of a kind."""
    found = [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)]
    return [block for block in found if kind is None or block.kind == kind]


def typed_lines(text: str) -> list[str]:
    """Return the lines of a text's blocks of commands, continued ones joined."""
    found = [block.text for block in blocks(text) if block.kind in ("", "bash")]
    return [line for block in found for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(text: str) -> list[str]:
    """Return the ``fedpfn`` commands in the blocks of a text."""
    return [line for line in typed_lines(text) if line.startswith("fedpfn ")]


def mentioned(text: str) -> list[str]:
    """Return the ``fedpfn`` commands that stand in the sentences of a text."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(words.split()) for words in re.findall(r"`(fedpfn [^`]+)`", prose)]


def write_files(page: Path | str, folder: Path) -> list[str]:
    """Write the modules and YAML files that a page shows into a folder, and return the modules' names."""
    names = []
    for block in blocks(text_of(page)):
        if block.module:
            (folder / f"{block.module}.py").write_text(block.text)
            names.append(block.module)
        elif named := re.match(r"# (\w+\.yaml)\n", block.text):
            (folder / named[1]).write_text(block.text)
    return names


def parse(line: str, folder: Path, *, whole: bool = True) -> None:
    """Read a command as the command line does, its settings, files and experiments included; nothing is run.

    ``folder`` is where it is typed. Words in capitals stand for what a reader puts in. One that is not ``whole`` may be
    named without what it is called with. Raises ``click.ClickException`` or ``ValueError`` for what the command line
    would refuse.
    """
    words = shlex.split(re.sub(r"(--jobs|--actors) [A-Z]+", r"\1 1", line), comments=True)[1:]
    command: click.Command = get_command(app)
    name = "fedpfn"
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        if name.startswith("--"):
            return
        if name not in command.commands:
            raise click.UsageError(f"there is no command {name}")
        command = command.commands[name]
    with chdir(folder):
        for word in words:
            if Path(word).suffix in (".pt", ".safetensors") and not Path(word).exists():
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                Path(word).touch()
        try:
            given = command.make_context(name, list(words)).params
        except (click.MissingParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError):
            if whole:
                raise
            return
        _check(name, given, folder, laboratory=line.split()[1] == "lmc")


def _check(name: str, given: dict[str, Any], folder: Path, *, laboratory: bool) -> None:
    settings = [word for word in given.get("words") or [] if not _PLACEHOLDER.fullmatch(word)]
    if laboratory:
        typed = [word for word in given.get("checkpoints") or [] if "=" in word]
        LabConfig.parse(parse_overrides(typed, LabConfig))
    elif name == "run" and given["resume"]:
        assert parse_overrides(settings).keys() <= {"rounds"}
    elif name in ("run", "masks", "check-model"):
        file = _file(given.get("config"), folder)
        read_run_config(settings, file=file, workdir=folder)
    elif name == "sweep":
        _check_sweep(given, settings, folder)
    elif name == "report":
        baseline_words(given["baseline"] or [])
        named = {key for text in (given["by"], given["across"]) for key in text.split(",") if key}
        assert named <= KEYS, named - KEYS
        read_words(given["where"] or [], option="--where")
    elif name == "reproduce":
        choose_studies(given["names"] or [])


def _check_sweep(given: dict[str, Any], settings: list[str], folder: Path) -> None:
    file = Path(given["file"]) if given["file"] in packaged_names() else _file(given["file"], folder)
    if file is None:
        RunConfig.parse(parse_overrides(settings))
        return
    sweep = read_sweep(file, settings, workdir=folder, quick=given["quick"], cases=given["case"] or [])
    if named := [*(given["skip"] or []), *(given["unskip"] or [])]:
        choose_cells(expand(sweep), Path(given["out"] or "out"), named)


def _file(name: str | None, folder: Path) -> Path | None:
    """Return the file of a command, in the folder or in the repository; None for one of the reader's own."""
    if name is None:
        return None
    found = next((place / name for place in (folder, ROOT) if (place / name).is_file()), None)
    assert found or not name.startswith(("experiments/", "tests/")), f"{name} is not there"
    return found
