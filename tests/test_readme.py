"""What the README promises: two commands that CI types as well, a first comparison, and the shortest Flower app."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flower_apps as apps
import pytest
import torch
from documents import ROOT, blocks, commands, section, text_of, write_files
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from experiments.cli import app
from fedpfn.runs import read_run


def test_the_readme_fits_on_two_screens() -> None:
    assert len(text_of("README.md").splitlines()) <= 130


@pytest.mark.parametrize("title", ["Run it", "Test it"])
def test_ci_types_the_readmes_commands(title: str) -> None:
    command = blocks(section("README.md", title))[0].text.strip()
    # a link in CI may end in a flag that shows more; it may not start otherwise
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    write_files("README.md", tmp_path)
    yield tmp_path


def test_the_first_comparison_runs_and_its_report_compares(here: Path) -> None:
    sweep, report = (line.split()[1:] for line in commands(section("README.md", "Your first comparison")))
    # the same cells, smaller, and without processes of their own
    small = ["rounds=2", "data.train-examples=200", "federation.clients=3", "barrier.points=3", "device=cpu"]
    sweep[sweep.index("--jobs") + 1] = "1"
    for words in ([*sweep, *small, "--in-process"], report):
        result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
        assert result.exit_code == 0, (words, result.output, result.exception)
    runs = [read_run(folder) for folder in (here / "out/first/cells").iterdir()]
    assert sorted((run.config.strategy.name, run.config.seed) for run in runs) == [
        (name, seed) for name in ("fedavg", "fedpfn") for seed in (0, 1, 2)
    ]
    assert "Difference from strategy.name=fedavg, paired by seed" in result.output
    assert (here / "report.html").stat().st_size > 10_000


def test_the_report_that_the_readme_shows_adds_up() -> None:
    """The lines shown are a run's, cut to three columns; what they say of each other has to hold."""
    shown = next(block.text for block in blocks(section("README.md", "Your first comparison")) if block.kind == "text")
    rows = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in shown.splitlines()[1:3]]
    (accuracy, _, barrier, _, up), (masked_accuracy, _, masked_barrier, _, masked_up) = rows
    delta = [float(number.replace("−", "-")) for number in re.findall(r"[−+]\d\.\d+", shown)]
    assert delta[0] == pytest.approx(masked_accuracy - accuracy, abs=2e-4)
    assert delta[3] == pytest.approx(masked_barrier - barrier, abs=2e-4)
    assert masked_up / up == pytest.approx(0.6, abs=0.01)


def test_the_shortest_flower_app_trains_under_a_mask() -> None:
    (block,) = blocks(section("README.md", "In a Flower app of your own"), "python")
    names: dict[str, Any] = {}
    exec(block.text, names)
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        net = apps.net()
        net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        names["train"](net, apps.batches(int(context.node_config["partition-id"])), message)
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    strategy = names["strategy"]
    strategy.strategy.fraction_evaluate = 0.0
    after = apps.start(strategy, client, nodes=4)
    still = [(after[name] == tensor).flatten() for name, tensor in apps.net().state_dict().items()]
    assert 0.35 < float(torch.cat(still).float().mean()) < 0.45
