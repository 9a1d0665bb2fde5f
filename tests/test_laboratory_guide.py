"""What experiments/LABORATORY.md shows works as written: its code and its commands, in order, in one folder."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fedpfn.lmc
from experiments.cli import app
from fedpfn.lmc.fusion import METHODS

GUIDE = (Path(__file__).parent.parent / "experiments" / "LABORATORY.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", GUIDE, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.strip().splitlines()]
MODULE = next(block for kind, block in BLOCKS if kind == "python" and block.startswith("# my_lab.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the guide's commands are typed in, as its first one leaves it."""
    folder, before = tmp_path_factory.mktemp("lab"), Path.cwd()
    (folder / "my_lab.py").write_text(MODULE)
    os.chdir(folder)
    sys.path.append(str(folder))
    assert COMMANDS[0] == "python my_lab.py"
    runpy.run_path("my_lab.py", run_name="__main__")
    yield folder
    os.chdir(before)
    sys.path.remove(str(folder))
    sys.modules.pop("my_lab", None)


def typed(command: str) -> str:
    result = CliRunner().invoke(app, command.removeprefix("fedpfn ").split(), env={"COLUMNS": "160"})
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


def own_commands() -> list[str]:
    return [command for command in COMMANDS if command.startswith("fedpfn") and "merged" not in command]


def test_the_guide_is_short_and_names_every_method_and_command() -> None:
    assert len(GUIDE.splitlines()) <= 190
    assert re.findall(r"^\| `([\w-]+)` \|", GUIDE, flags=re.MULTILINE) == list(METHODS)
    named = {command.split()[2] for command in COMMANDS if command.startswith("fedpfn lmc")}
    assert named == {"evaluate", "barrier", "match", "layers", "curve", "fuse"}


def test_the_commands_run_in_order_and_write_what_they_name(folder: Path) -> None:
    for command in own_commands():
        typed(command)
        for file in re.findall(r"--(?:out|bend) (\S+)", command):
            assert (folder / file).stat().st_size > 100, command


def test_the_python_of_the_guide_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints, siblings = (block for kind, block in BLOCKS if kind == "python" and "pairwise" in block)
    names: dict[str, Any] = {}
    exec(checkpoints, names)
    assert capsys.readouterr().out.count("accuracy barrier") == 2
    exec(siblings, names)
    assert len(names["siblings"].states) == 3 and capsys.readouterr().out


def test_what_the_guide_names_in_python_exists() -> None:
    for dotted in re.findall(r"`fedpfn\.lmc\.(\w+)", GUIDE):
        assert importlib.util.find_spec(f"fedpfn.lmc.{dotted}") or hasattr(fedpfn.lmc, dotted), dotted


@pytest.mark.skipif(shutil.which("mergekit-pytorch") is None, reason="mergekit-pytorch is not on the PATH")
def test_mergekit_takes_what_fuse_writes_and_agrees_with_it(folder: Path) -> None:
    for command in own_commands():
        if command.startswith("fedpfn lmc fuse") and not (folder / command.split()[-1]).exists():
            typed(command)
    (folder / "merge.yaml").write_text(next(block for kind, block in BLOCKS if kind == "yaml"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(["mergekit-pytorch", "merge.yaml", "merged"], check=True, env=environment, timeout=200)
    typed(COMMANDS[-1])
    ours = re.search(r"`(fedpfn lmc fuse task-arithmetic [^`]+)`", GUIDE)
    assert ours is not None
    typed(f"{ours[1]} --model my_lab:net --data my_lab:digits --out ours.safetensors")
    merged, own = load_file("merged/model.safetensors"), load_file("ours.safetensors")
    assert merged.keys() == own.keys()
    worst = max(float((merged[name] - tensor).abs().max()) for name, tensor in own.items())
    print(f"largest difference: {worst:.2g}")
    assert worst < 1e-6
    assert any(not torch.equal(own[name], tensor) for name, tensor in load_file("mean.safetensors").items())
