"""What the README shows works as written: its two commands are CI's, its code runs, its files and keys exist."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import fedpfn.lmc
from experiments.cli import app
from experiments.lab.config import LabConfig
from experiments.lab.experiment import read_experiment
from experiments.runtime.in_process import run_in_process
from experiments.sweep.cells import expand
from experiments.sweep.file import read_sweep
from fedpfn.runs import read_run
from fedpfn.runs.config import RunConfig, parse_overrides
from fedpfn.runs.keys import key_specs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODULES = {
    match[1]: match[0].removeprefix("```python\n").removesuffix("```")
    for match in re.finditer(r"```python\n# (\w+)\.py\n.*?```", README, flags=re.DOTALL)
}


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("title", ["Run it", "Test it"])
def test_ci_types_the_readmes_commands(title: str) -> None:
    command = section(title).split("```\n")[1].strip()
    # a link in CI may end in a flag that shows more; it may not start otherwise
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path  # type: ignore[misc]
    for name in MODULES:
        sys.modules.pop(name, None)


def own_part_commands() -> list[str]:
    return re.findall(r"^fedpfn run (.*)$", "".join(section("Your own parts").split("```")), flags=re.MULTILINE)


@pytest.mark.parametrize("command", own_part_commands())
def test_the_readmes_own_parts_run(folder: Path, command: str) -> None:
    words = ["rounds=2", "barrier.points=3", "federation.clients=3", "device=cpu", f"output.dir={folder}/run"]
    run = read_run(run_in_process(RunConfig.parse(parse_overrides([*words, *command.split()]))))
    assert run.summary is not None
    if "schedule" in command:
        masked = [record["mask"]["frozen"] > 0 for record in run.rounds[1:]]
        assert masked == ([False, True] if "offset=0" in command else [True, False])


def test_the_readme_has_a_command_for_each_family_of_own_parts() -> None:
    keys = {command.partition("=")[0] for command in own_part_commands()}
    families = {"data.name", "partition.scheme", "mask.schedule", "train.optimizer", "strategy.base", "measures"}
    assert keys == families | {"model.name", "strategy.name"}


def test_the_readmes_mathematics_runs(capsys: pytest.CaptureFixture[str]) -> None:
    codes = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "pairwise" in block]
    assert len(codes) == 2
    for code in codes:
        names: dict[str, Any] = {}
        exec(code, names)
        assert capsys.readouterr().out
        assert "siblings" in names or names["result"].loss.shape == (3, 25)


def test_the_readmes_experiments_and_settings_of_the_laboratory_exist() -> None:
    keys = {spec.name for spec in key_specs(LabConfig)} | set(RunConfig.parse().flat())
    laboratory = section("The laboratory")
    for name in re.findall(r"(paper/\w+)", laboratory):
        assert read_experiment(Path(name))[1]
    assert {word.split("=")[0] for word in re.findall(r"[a-z]+\.[a-z-]+=", laboratory)} <= keys
    for dotted in re.findall(r"`fedpfn\.lmc\.(\w+)", laboratory):
        assert importlib.util.find_spec(f"fedpfn.lmc.{dotted}") or hasattr(fedpfn.lmc, dotted), dotted


def test_every_setting_and_file_that_the_readme_names_exists() -> None:
    keys = set(RunConfig.parse().flat()) | {spec.name for spec in key_specs(LabConfig)}
    tables = "federation|data|partition|model|strategy|mask|train|evaluate|barrier|output"
    named = set(re.findall(rf"\b((?:{tables})\.[a-z-]+)\b", README)) - {"partition.json"}
    assert named <= keys
    for path in re.findall(r"\]\((?!https?:)([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:experiments|strategies|fedpfn)/[\w/]+\.(?:py|yaml|png)", README):
        assert (ROOT / path).exists(), path


def test_the_readmes_sweep_is_one_and_the_cell_it_resumes_is_the_file_s(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", section("Many runs"), flags=re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(text)
    cells = expand(read_sweep(tmp_path / "sweep.yaml", workdir=tmp_path))
    # two skews and two rows of settings; FedAvg once and its two proximal cells, FedPFN twice, FedPNU once; three seeds
    assert len(cells) == (4 * (1 + 2 + 1) + 2) * 3
    digits = expand(read_sweep(ROOT / "experiments/conf/sweeps/digits.yaml", workdir=tmp_path))
    (label, address) = re.findall(r"--resume \S+/cells/(\S+)-([0-9a-f]{12})", README)[0]
    assert (label, address) in [(cell.label, cell.address) for cell in digits]


def test_the_readmes_commands_and_options_exist() -> None:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    blocks = "\n".join(README.split("```")[1::2])
    for line in re.findall(r"^fedpfn ([a-z].+)$", blocks, flags=re.MULTILINE):
        name, *words = line.partition("  #")[0].split()
        found = commands[name].commands[words.pop(0)] if name == "lmc" else commands[name]
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
