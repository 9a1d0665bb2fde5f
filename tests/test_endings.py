"""The line of the user's own code among those of libraries, and what is said last of a run."""

import sysconfig
from pathlib import Path

import fedpfn
from experiments.endings import note_ending, own_line
from experiments.runtime.failure import notes
from fedpfn.runs import RunFolder
from fedpfn.runs.config import RunConfig


def frame(file: str, line: int, name: str, source: str) -> str:
    return f'  File "{file}", line {line}, in {name}\n    {source}\n'


LIBRARY = frame(f"{sysconfig.get_path('purelib')}/torch/nn/module.py", 9, "_call", "return forward(x)")
STANDARD = frame(f"{sysconfig.get_path('stdlib')}/json/decoder.py", 3, "decode", "raise")
OURS = frame(f"{fedpfn.__file__}", 5, "train", "model(inputs)")


def test_the_last_line_of_the_users_own_is_found_among_those_of_libraries() -> None:
    first, last = frame("/home/me/a.py", 1, "main", "go()"), frame("/home/me/nets/b.py", 12, "forward", "x @ y")
    text = f"noise\nTraceback:\n{first}{OURS}{last}{LIBRARY}{STANDARD}ValueError: no\n"
    assert own_line(text) == "/home/me/nets/b.py, line 12, in forward: x @ y"
    assert own_line(f"{OURS}{LIBRARY}{STANDARD}") is None and own_line("") is None
    assert own_line(frame("<string>", 1, "<module>", "")) is None


def test_what_was_not_recorded_has_no_place(tmp_path: Path) -> None:
    error = KeyboardInterrupt()
    note_ending(error, tmp_path)
    assert notes(error) == []
    place = tmp_path / "with a blank"
    RunFolder(place).write_config(RunConfig(), device="cpu")
    note_ending(error, place)
    wrapped = SystemExit(130)
    wrapped.__context__ = error
    assert notes(wrapped) == [f"run folder: {place}\nto resume: fedpfn run --resume '{place}'"]
