"""What the README shows works as written: its two commands are CI's, its code runs, its files and keys exist."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.in_process import run_in_process
from fedpfn.config import RunConfig, parse_overrides
from fedpfn.records import read_run

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


@pytest.mark.parametrize(
    "word", ["model.name=my_models:TinyNet", "mask.schedule=my_schedules:every_other", "data.name=my_data:load"]
)
def test_the_readmes_own_parts_run(folder: Path, word: str) -> None:
    assert f"fedpfn run {word}" in README
    words = [word, f"output.dir={folder}/run", "rounds=2", "barrier.points=3", "federation.clients=3", "device=cpu"]
    run = read_run(run_in_process(RunConfig.parse(parse_overrides(words))))
    assert run.summary is not None
    if "schedule" in word:
        assert [record["mask"]["frozen"] > 0 for record in run.rounds[1:]] == [True, False]


def test_the_readmes_mathematics_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "pairwise" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["found"].loss.shape == (3, 25)
    assert capsys.readouterr().out


def test_every_setting_and_file_that_the_readme_names_exists() -> None:
    keys = set(RunConfig.parse().flat())
    tables = "federation|data|partition|model|strategy|mask|train|barrier|output"
    named = set(re.findall(rf"\b((?:{tables})\.[a-z-]+)\b", README)) - {"partition.json"}
    assert named <= keys
    for path in re.findall(r"\]\((?!https?:)([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?:experiments|strategies|fedpfn)/[\w/]+\.(?:py|yaml|png)", README):
        assert (ROOT / path).exists(), path
