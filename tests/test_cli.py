"""The command line as typed: messages for what is wrong, tables and pictures of what was run, the real runtime."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from toys import says
from typer.testing import CliRunner, Result

from experiments.cli import app, main
from experiments.runtime.failure import notes
from fedpfn.runs import read_run, state_digest

COMMAND = [sys.executable, "-c", "from experiments.cli import main; main()"]
MODEL = """
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        channels, height, width = input_shape
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

    def forward(self, inputs):
        return self.net(inputs)

class WrongOutput(TinyNet):
    def forward(self, inputs):
        return self.net(inputs)[:, :2]

def fails_in_round_three(server_round, plan):
    if server_round == 3:
        raise KeyError("round")
    return plan

not_a_schedule = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that holds only a module of the user's, with the command typed in it."""
    name = f"models_{re.sub(r'[^a-z0-9]', '_', tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def module_of(folder: Path) -> str:
    return next(folder.glob("models_*.py")).stem


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Run the command line in this process and return (exit status, output, errors)."""
    monkeypatch.setattr(sys, "argv", ["fedpfn", *words])
    with pytest.raises(SystemExit) as ending:
        main()
    output, errors = capsys.readouterr()
    return int(ending.value.code or 0), output, errors


BAD = {
    "rouns=3": "unknown key 'rouns'; did you mean 'rounds'?",
    "alpha=0.1": "unknown key 'alpha'; did you mean 'partition.alpha'?",
    "rounds": "'rounds' is not key=value",
    "rounds=three": "rounds must be a whole number, got 'three'",
    "rounds=2.5": "rounds must be a whole number, got 2.5",
    "rounds=0": "rounds must be at least 1, got 0",
    "train.lr=fast": "train.lr must be a number, got 'fast'",
    "train.lr=-0.1": "train.lr must be above 0, got -0.1",
    "train.lr=nan": "train.lr must be above 0, got nan",
    "data.download=perhaps": "data.download must be true or false, got 'perhaps'",
    "mask.ratio=1.5": "mask.ratio must be at most 1, got 1.5",
    "mask.granularity=layer": "mask.granularity must be one of weight, neuron, got 'layer'",
    "mask.include=linaer*": "mask.include has 'linaer*', which matches no parameter of mlp",
    "mask.exclude=head.*,tail": "mask.exclude has 'tail', which matches no parameter of mlp",
    "mask.schedule=per-rund": "mask.schedule must be one of per-round, fixed, complement, cyclic",
    "mask.schedule=nowhere:schedule": "no module named 'nowhere'",
    "mask.schedule={module}:absent": "has no 'absent'",
    "mask.schedule={module}:not_a_schedule": "is not a function (server_round, plan) -> plan",
    "mask.warmup-rounds=20": "leaves none of the 20 rounds to mask",
    "strategy.name=fedpro": "did you mean 'fedprox'?",
    "strategy.server-optimizer=sgd": "strategy.server-optimizer must be one of none, avgm, adam, adagrad, yogi",
    "partition.scheme=dirichle": "did you mean 'dirichlet'?",
    "partition.alpha=0": "partition.alpha must be above 0, got 0",
    "federation.fraction=0": "federation.fraction must be above 0, got 0",
    "federation.clients=5000": "federation.clients = 5000 is more than the",
    "partition.min-size=1000": "partition.min-size = 1000 for federation.clients = 10 needs 10000 training examples",
    "data.name=minst": "did you mean 'mnist'?",
    "data.name=mnist": "data.root",
    "data.name=nowhere:load": "no module named 'nowhere'",
    "model.name=resnet21": "resnet2",
    "model.name={module}:Tiny": "has no 'Tiny'",
    "model.name={module}:WrongOutput": "(2, 10)",
    "model.norm=instance": "model.norm must be one of none, group, layer, batch, got 'instance'",
    "barrier.points=10": "barrier.points must be odd",
    "train.nesterov=true train.momentum=0.0": "train.nesterov needs train.optimizer=sgd and train.momentum above 0",
    "output.dir={module}.py": "is a file",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_config_is_named_and_leaves_nothing_behind(
    folder: Path, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under --in-process, which differs from a run on Ray only after all of this was said."""
    module = module_of(folder)
    typed = [word.format(module=module) for word in words.split()]
    status, _, errors = call(capsys, monkeypatch, "run", "--in-process", *typed)
    assert status == 1
    assert BAD[words].format(module=module) in errors
    assert "Traceback" not in errors
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == [f"{module}.py"]


def test_all_faults_are_named_in_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data.name=mnist", "partition.scheme=dirichle", "model.name=resnet21", "mask.schedule=nowhere:schedule"]
    _, _, errors = call(capsys, monkeypatch, "run", *words)
    assert "the config has 4 faults" in errors
    module = module_of(folder)
    words = [
        "rounds=three",
        "seed",
        "pratition.alpha=1",
        f"model.name={module}:WrongOutput",
        f"mask.schedule={module}.py:no",
    ]
    for command in (["run"], ["run", "--in-process"], ["masks"], ["check-model", f"{module}:TinyNet"]):
        _, _, errors = call(capsys, monkeypatch, *command, *words)
        assert f"the config has {4 if command[0] == 'check-model' else 5} faults" in errors, errors
        assert "model mlp" not in errors and "has no 'no'" in errors


def test_results_are_never_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "precious.txt").write_text("years of work")
    status, _, errors = call(capsys, monkeypatch, "run", "output.dir=out")
    assert status == 1 and "is not empty: results are never overwritten" in errors
    assert (folder / "out" / "precious.txt").read_text() == "years of work"


def test_impossible_resources_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, errors = call(capsys, monkeypatch, "run", "--actors", "10000")
    assert status == 1 and "10000 actors were requested" in errors
    assert not (folder / "runs").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a place where no folder can be made")
def test_an_output_folder_that_cannot_be_made_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["--in-process"], []):
        status, _, errors = call(capsys, monkeypatch, "run", "output.dir=/proc/nowhere", *words)
        assert status == 1 and says(errors.strip(), "/proc/nowhere", "no such file")


def test_a_file_where_a_sweep_is_to_lie_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sweep.yaml").write_text("base: {rounds: 1}\nseeds: [0]\n")
    (folder / "file").touch()
    for words in ([], ["--dry-run"]):
        status, _, errors = call(capsys, monkeypatch, "sweep", "sweep.yaml", "--out", "file", *words)
        assert status == 1 and says(errors.strip(), str(folder / "file"), "is a file", "--out")


def test_a_run_that_diverges_in_process_ends_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, errors = call(capsys, monkeypatch, "run", "--in-process", "train.lr=1e20", "output.dir=out")
    assert status == 1
    *_, said, place, how = errors.strip().splitlines()
    assert said.startswith("the run failed: client 0 failed in round 1, local training: ")
    assert place == f"run folder: {folder / 'out'}" and how.endswith(f"fedpfn run --resume {folder / 'out'}")


def test_a_failure_in_code_of_the_users_names_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"mask.schedule={module_of(folder)}:fails_in_round_three", "rounds=4", "output.dir=out"]
    monkeypatch.setattr(sys, "argv", ["fedpfn", "run", "--in-process", *words])
    with pytest.raises(KeyError) as caught:
        main()
    place = f'{folder / module_of(folder)}.py, line 19, in fails_in_round_three: raise KeyError("round")'
    assert notes(caught.value)[0] == f"in your code: {place}"


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("cells/a/rounds.jsonl", "report"),
        ("cells/a/failure.json", "report"),
        ("sweep.yaml", "report"),
        ("experiment.yaml", "report"),
    ],
)
def test_a_folder_of_many_runs_is_shown_by_another_command(
    folder: Path, file: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out" / file).parent.mkdir(parents=True)
    (folder / "out" / file).touch()
    status, _, errors = call(capsys, monkeypatch, "show", "out")
    assert status == 1 and "try `fedpfn report out`" in errors


def invoke(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_a_run_is_shown_as_a_table_and_a_picture(folder: Path) -> None:
    invoke("run", "--in-process", "rounds=3", "output.dir=out", "barrier.points=5")
    shown = invoke("show", "out").output
    final = read_run(folder / "out").rounds[3]["accuracy"]
    assert f"{final:.4f}" in shown and "accuracy barrier" in shown
    assert (folder / "out" / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_config_runs_again_to_the_same_result(folder: Path) -> None:
    invoke("run", "--in-process", "rounds=2", "output.dir=one", "barrier.every=0", "seed=3")
    invoke("run", "--in-process", "--config", "one/config.yaml", "output.dir=two")
    one, two = read_run(folder / "one"), read_run(folder / "two")
    assert one.summary and two.summary and one.summary["weights_sha256"] == two.summary["weights_sha256"]


def test_masks_prints_what_a_schedule_freezes() -> None:
    printed = invoke("masks", "strategy.name=fedpnu", "mask.ratio=0.25", "--first", "2").output
    assert "head.weight" in printed and "25.0%" in printed and "75.0%" in printed


def test_check_model_tells_good_from_bad(folder: Path) -> None:
    module = module_of(folder)
    assert "can be federated" in invoke("check-model", f"{module}:TinyNet").output
    result = CliRunner().invoke(app, ["check-model", f"{module}:WrongOutput"])
    assert result.exit_code == 1 and "cannot be federated" in result.output


def test_keys_lists_every_key_with_its_default() -> None:
    listed = invoke("keys").output
    assert "partition.min-size" in listed and "'per-round'" in listed
    assert "fedpfn[tensorboard]" in listed


def test_keys_can_be_filtered() -> None:
    listed = invoke("keys", "momentum").output
    assert "train.momentum" in listed and "partition.min-size" not in listed
    assert "no key matches 'momentun'" in str(CliRunner().invoke(app, ["keys", "momentun"]).exception)


class Real(NamedTuple):
    """The folder of runs of one federation: ``reference`` in one process, the others on the real runtime, as typed."""

    folder: Path
    one: subprocess.CompletedProcess[str]
    four: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Two commands side by side, since each takes a while: one fails in a third round, with two rounds before it."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "models_real.py").write_text(MODEL)
    words = ["strategy.name=fedpnu", "model.name=models_real:TinyNet", "barrier.points=5", "output.checkpoint-every=1"]
    words += ["output.keep-checkpoints=0"]
    words += ["mask.schedule=models_real:fails_in_round_three"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        invoke("run", "--in-process", "output.dir=reference", "rounds=2", *words)
    surroundings = {key: value for key, value in os.environ.items() if key != "COLUMNS"}

    def fedpfn(*typed: str) -> subprocess.CompletedProcess[str]:
        line = [*COMMAND, "run", *typed, *words]
        return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300, env=surroundings)

    with ThreadPoolExecutor() as side_by_side:
        one = side_by_side.submit(fedpfn, "output.dir=one", "rounds=3", "--supernodes", "1", "--actors", "1")
        four = side_by_side.submit(fedpfn, "output.dir=four", "rounds=2", "--supernodes", "4")
        return Real(folder, one.result(), four.result())


@pytest.mark.slow
def test_the_real_runtime_gives_the_same_bits_whatever_its_nodes_and_actors(real: Real) -> None:
    """On Ray, with the user's own model, against the same federation in one process."""
    reference = (real.folder / "reference" / "rounds.jsonl").read_text()
    for name in ("one", "four"):
        assert _without_seconds((real.folder / name / "rounds.jsonl").read_text()) == _without_seconds(reference)
        assert (real.folder / name / "flower.log").stat().st_size > 0
    # the weights after two rounds, which are where two of the three end
    assert len({state_digest(read_run(real.folder / n).state("round-0002")) for n in ("reference", "one", "four")}) == 1
    digests = {
        json.loads((real.folder / n / "summary.json").read_text())["weights_sha256"] for n in ("reference", "four")
    }
    assert len(digests) == 1


@pytest.mark.slow
def test_a_run_that_completes_says_where_its_folder_is_on_its_last_line(real: Real) -> None:
    assert real.four.returncode == 0, real.four.stderr
    assert real.four.stdout.strip().splitlines()[-1] == f"run folder: {real.folder / 'four'}"


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_where_on_its_last_lines(real: Real) -> None:
    assert real.one.returncode == 1
    out, source = real.folder / "one", real.folder / "models_real.py"
    assert real.one.stderr.strip().splitlines()[-5:] == [
        "KeyError: 'round'",
        f'in your code: {source}, line 19, in fails_in_round_three: raise KeyError("round")',
        f"run folder: {out}",
        f"log: {out / 'flower.log'}",
        f"to continue, once the cause is fixed: fedpfn run --resume {out}",
    ]
    found = read_run(real.folder / "one")
    assert found.summary is None and found.failure and len(found.rounds) == 3


def _without_seconds(lines: str) -> list[str]:
    return [re.sub(r'"seconds": {[^}]*}', "", line) for line in lines.splitlines()]
