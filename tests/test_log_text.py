"""Logs as a page shows them: whole or cut between lines, without terminal codes, without what nobody else may read."""

from pathlib import Path

import pytest

from experiments.report.log_text import MOST, LogText, clean, read_log, without_secrets


def a_log(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "flower.log"
    path.write_bytes(data)
    return path


def test_where_there_is_no_log_there_is_none(tmp_path: Path) -> None:
    assert read_log(tmp_path / "flower.log") is None


def test_a_log_that_is_not_long_is_whole(tmp_path: Path) -> None:
    lines = b"0123456789\n" * 3
    assert read_log(a_log(tmp_path, lines), max_bytes=33) == LogText(lines.decode(), "", 0, 33)
    assert read_log(a_log(tmp_path, b"")) == LogText("", "", 0, 0)
    assert MOST == 100_000


def test_a_long_log_is_cut_between_lines_and_says_by_how_much(tmp_path: Path) -> None:
    lines = [f"line {number:04d}\n" for number in range(1000)]
    found = read_log(a_log(tmp_path, "".join(lines).encode()), max_bytes=100)
    # of the last 60 bytes the first line is left out: it may be half of one
    assert found == LogText("".join(lines[:4]), "".join(lines[-5:]), 10_000 - 90, 10_000)


def test_a_line_without_end_is_cut_where_it_must_be(tmp_path: Path) -> None:
    found = read_log(a_log(tmp_path, b"a" * 500 + b"z" * 500), max_bytes=100)
    assert found == LogText("a" * 40, "z" * 60, 900, 1000)


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    found = read_log(a_log(tmp_path, "é".encode() + b"\xff\xfe end"))
    assert found is not None and found.head == "é\ufffd\ufffd end"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[1;32mINFO\x1b[0m : x", "INFO : x"),
        ("\x1b[?25l\x1b[2K\x1b[1Gdone\x1b[?25h", "done"),
        ("\x1b]8;;https://flower.ai\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b(Bx\x1b7y\x1b=z", "xyz"),
        ("\x9b31mred", "red"),
        ("bell\x07 null\x00 delete\x7f", "bell null delete"),
        ("tab\tstays, array[0] and \\x1b stay", "tab\tstays, array[0] and \\x1b stay"),
    ],
)
def test_what_is_for_a_terminal_is_left_out(text: str, left: str) -> None:
    assert clean(text) == left


def test_a_line_that_was_written_over_is_its_last_state() -> None:
    assert clean("first\n 10%\r 50%\r100%\nlast") == "first\n100%\nlast"
    assert clean("one\r\ntwo\r\r\nthree\r") == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET https://me:pass@host:80/a?b", "GET https://[hidden]@host:80/a?b"),
        ("s3://AKIA123@bucket", "s3://[hidden]@bucket"),
        ("Authorization: Bearer abcdef.123-456==", "Authorization: Bearer [hidden]"),
        ("MLFLOW_TRACKING_PASSWORD=hunter22 next", "MLFLOW_TRACKING_PASSWORD=[hidden] next"),
        ('{"api_key": "sk-0123456789", "n": 1}', '{"api_key": "[hidden]", "n": 1}'),
        ("HF_TOKEN: hf_abcdefgh", "HF_TOKEN: [hidden]"),
        ("client-secret=abcdefgh,x", "client-secret=[hidden],x"),
    ],
)
def test_secrets_are_hidden(text: str, left: str) -> None:
    assert without_secrets(text) == left
    assert clean(f"\x1b[31m{text}") == left


@pytest.mark.parametrize(
    "text",
    ["mail me@host", "https://flower.ai/docs@1.41", "20000 tokens: 5 epochs", "tokenizer=basic_english", "token=5"],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert without_secrets(text) == text
