"""A federation run from Python is the one of the command line."""

from pathlib import Path

import pytest

from experiments.federation import federate
from fedpfn.runs.config import ConfigError

WORDS = ("rounds=2", "federation.clients=3", "device=cpu", "barrier.points=3", "data.train-examples=200")


def test_a_federation_in_this_process_returns_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = federate(*WORDS, "output.dir=first", in_process=True)
    assert run.path == tmp_path / "first" and run.summary is not None and len(run.rounds) == 3
    again = federate("output.dir=second", config=run.path / "config.yaml", in_process=True)
    assert again.summary is not None and again.summary["weights_sha256"] == run.summary["weights_sha256"]
    with pytest.raises(ConfigError, match=r"rounds must be at least 1"):
        federate("rounds=0", in_process=True)
    with pytest.raises(ConfigError, match="results are never overwritten"):
        federate(*WORDS, "output.dir=first", in_process=True)


@pytest.mark.slow
def test_a_federation_on_ray_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [federate(*WORDS, f"output.dir={name}", in_process=name == "here") for name in ("here", "ray")]
    digests = {run.rounds[-1]["weights_sha256"] for run in runs}
    assert len(digests) == 1
