"""What the README and the guides show holds: their code runs, their commands parse, their links and names exist."""

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import documents
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from documents import KEYS, LAB_KEYS, ROOT, blocks, commands, mentioned, pages, text_of, typed_lines, write_files

from experiments.runtime.in_process import run_in_process
from experiments.sweep.cells import expand
from experiments.sweep.file import read_sweep
from fedpfn.runs.config import RunConfig, parse_overrides

PAGES = pages()
# records of what was, whose commands were those of their time
RECORDS = {Path("CHANGELOG.md")}
CURRENT = [page for page in PAGES if page not in RECORDS]
# kinds of blocks, each of which a test here or one of those named runs or reads; output and pictures aside
KINDS = {"", "bash", "bibtex", "diff", "mermaid", "python", "text", "toml", "yaml"}
# programs of others
OTHERS = {"bash", "export", "flower-superlink", "flwr", "mergekit-pytorch", "python", "python3", "ray"}
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def ids(page: Path) -> str:
    return page.as_posix()


def test_the_readme_and_the_guides_are_found() -> None:
    named = {"README.md", "CONTRIBUTING.md", "SECURITY.md", "experiments/STUDIES.md", "strategies/FLOWER.md"}
    assert named <= {page.as_posix() for page in PAGES}


def test_the_readme_leads_to_every_guide() -> None:
    linked = {target for target, _ in LINK.findall(text_of("README.md"))}
    assert {page.as_posix() for page in PAGES} - {"README.md"} <= linked


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(text_of(page)):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), target
        assert not anchor or anchor in slugs(place), f"{target}#{anchor}"


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_every_setting_and_file_that_a_page_names_exists(page: Path) -> None:
    text = text_of(page)
    for block in blocks(text, "python"):
        text = text.replace(block.text, "")
    tables = "|".join(sorted({key.partition(".")[0] for key in KEYS | LAB_KEYS if "." in key}))
    named = set(re.findall(rf"(?<![\w./])((?:{tables})\.[a-z]+(?:-[a-z]+)*)\b", text))
    files = (".json", ".jsonl", ".yaml", ".md", ".py", ".png", ".npz")
    assert {name for name in named if not name.endswith(files)} <= KEYS | LAB_KEYS
    for path in re.findall(r"\b(?:experiments|strategies|fedpfn|clients|partitions|tests)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_every_command_of_a_page_is_one(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_files(page, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        text = text_of(page)
        for line in (*commands(text), *mentioned(text)):
            try:
                documents.parse(line, tmp_path, whole=line in commands(text))
            except Exception as error:
                pytest.fail(f"{line}: {error}")
    finally:
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("page", CURRENT, ids=ids)
def test_every_block_is_of_a_kind_that_is_tested(page: Path, tmp_path: Path) -> None:
    found = blocks(text_of(page))
    assert text_of(page).count("\n```") == 2 * len(found)
    assert {block.kind for block in found} <= KINDS
    for block in found:
        if block.kind == "toml":
            tomllib.loads(block.text)
        elif block.kind == "yaml":
            tree = yaml.safe_load(block.text)
            if "grid" in tree:
                (tmp_path / "sweep.yaml").write_text(block.text)
                assert expand(read_sweep(tmp_path / "sweep.yaml", workdir=tmp_path))
        elif block.kind == "bash":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, capture_output=True)
        elif block.kind == "":
            check_programs(block.text)


def check_programs(text: str) -> None:
    """Check that each line of a block of commands calls a known program, and that the scripts it names exist."""
    for line in typed_lines(f"```\n{text}```"):
        words = [word for word in line.split() if not re.match(r"[A-Z]+=", word)]
        program = words[0].removeprefix(".venv/bin/")
        assert program in OTHERS | {"fedpfn", "pytest", "pdoc"}, line
        scripts = [word for word in words if re.fullmatch(r"(experiments|tests|\.ci)/[\w/.]+", word)]
        assert all((ROOT / script).exists() for script in scripts), line
        if program == "flwr" and words[1] == "run":
            given = re.search(r'-c "(.*)"', line)
            assert given is None or RunConfig.parse(parse_overrides(given[1].replace("'", "").split()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the reader's, with a Flower app's ``task`` in it and a run in ``out/pnu``."""
    task = "from quickstart.task import Net, load_data\nfrom quickstart.task import train as train_fn\n"
    (tmp_path / "task.py").write_text(task)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "quickstart"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    plt.close("all")
    written = {"task", "quickstart", *(path.stem for path in tmp_path.glob("*.py"))}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in written:
            del sys.modules[name]


WITH_PYTHON = [page for page in CURRENT if blocks(text_of(page), "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=ids)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    """Modules are imported and, where a command runs them, run; other code runs in the order of the page."""
    names = write_files(page, folder)
    for name in names:
        import_module(name)
    for line in typed_lines(text_of(page)):
        if line.startswith("python ") and (folder / line.split()[1]).is_file():
            runpy.run_path(line.split()[1], run_name="__main__")
    shown = "".join(block.text for block in blocks(text_of(page), "python"))
    runs = {"out/pnu": "strategy.name=fedpnu", "out/digits/one": "partition.alpha=1", "out/digits/two": "seed=1"}
    for place, words in runs.items():
        if place in shown or f'"{Path(place).parent}"' in shown:
            small = f"rounds=1 federation.clients=2 barrier.points=3 device=cpu output.dir={place} {words}"
            run_in_process(RunConfig.parse(parse_overrides(small.split())))
    for block in blocks(text_of(page), "python"):
        if block.module is None:
            exec(compile(block.text, f"{page}", "exec"), {"__name__": "shown"})


def test_the_mathematics_on_its_own_measures_the_barriers_of_three_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(text_of("fedpfn/HOW_IT_WORKS.md"), "python")
    names: dict[str, Any] = {}
    exec(block.text, names)
    assert capsys.readouterr().out and names["result"].loss.shape == (3, 25)


def test_the_loader_of_the_guide_to_deployments_reads_a_nodes_own_data(folder: Path) -> None:
    (module,) = write_files("experiments/DEPLOYMENT.md", folder)
    for number, name in enumerate(("public", "private", "public_test")):
        np.savez(folder / f"{name}.npz", inputs=np.full((4, 2), number, np.float32), labels=np.arange(4) % 2)
    load = import_module(module).load
    server, node = load(str(folder)), load(str(folder), partition_id=1, num_partitions=2)
    assert [split[0][0, 0] for split in (*server, *node)] == [0, 2, 1, 1]
