"""A few hostile inputs of every kind: each is read, or refused in one line. ``tests/hostile.py`` tries many."""

from pathlib import Path

import pytest
from hostile import Places, checks
from hypothesis import HealthCheck, given, settings

KINDS = (
    "config trees", "words", "YAML and JSON bytes", "config files", "import strings", "run folders",
    "pictures of a run", "npz files", "npy arrays", "checkpoints", "sweep files", "experiment files",
    "laboratory folders", "laboratory folders of the earlier format",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("hostile"))


def test_every_kind_is_tried(places: Places) -> None:
    found = checks(places)
    assert tuple(found) == KINDS and sum(share for *_, share in found.values()) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_read_or_refused_in_one_line(
    places: Places, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    check, drawn, share = checks(places)[kind]
    settings(max_examples=share + 5, suppress_health_check=list(HealthCheck))(given(drawn)(check))()
