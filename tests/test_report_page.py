"""The page of a report: all that it says, and nothing that gets out of its place."""

import re
import shutil
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_pages import HOSTILE, a_run, a_sweep, whole_page, written

from experiments.report import page
from experiments.report.figures import NamedFigure
from experiments.report.run_entries import CURVE_HEIGHT, CURVE_WIDTH, curve, run_entries
from experiments.report.study import make_study
from fedpfn.runs import find_runs
from fedpfn.runs.config import RunConfig


class Reader(HTMLParser):
    """Takes a page apart: its elements with their attributes, and the text in the elements that are asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "input", "path"}:
            self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures: they take longer than all the rest."""
    monkeypatch.setattr(page, "sweep_figures", lambda study, *, target, say: [])
    monkeypatch.setattr(page, "inside_figures", lambda study, *, trust: [])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def whole(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the sweep, with all that a page may have."""
    return whole_page(sweep, tmp_path_factory.mktemp("page") / "new" / "report.html")


@pytest.fixture(scope="module")
def text(whole: Path) -> str:
    return whole.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(text: str) -> Reader:
    return Reader(text)


# what it says


def test_every_run_is_there_once(sweep: Path, reader: Reader) -> None:
    entries = [one for one in reader.all("details") if (one.get("class") or "").startswith("run ")]
    names = [str(one["data-words"]).split("\n")[0] for one in entries]
    assert sorted(names) == sorted(path.name for path in sweep.iterdir()) and len(names) == 14
    assert [str(one["class"]).split()[1] for one in entries] == 12 * ["complete"] + ["incomplete", "failed"]
    assert len({one["id"] for one in entries}) == 14


def test_the_head_says_what_was_asked_and_held_fixed(reader: Reader) -> None:
    assert reader.texts["title"] == [f"Title {HOSTILE}"] and reader.texts["h1"] == [f"Title {HOSTILE}"]
    head = " ".join(reader.texts["header"][0].split())
    assert f"Why? {HOSTILE}" in head
    assert list(zip(reader.texts["dt"][:7], reader.texts["dd"][:7], strict=True)) == [
        ("Runs", "14"), ("Experiments", "6"), ("Seeds", "0, 1"), ("Failed", "1"), ("Incomplete", "1"),
        ("Target accuracy", "0.75"), ("Baseline", "strategy.name=fedavg"),
    ]  # fmt: skip
    assert "federation.clients=2" in head and "other keys as by default" in head
    assert "2 of 14 runs are not complete (1 failed) and not averaged" in head


def test_means_are_written_short_and_sorted_by_exactly(text: str) -> None:
    # FedAvg at alpha 10: 0.83125 and 0.89375
    cell = r'<td class="number" data-value="0\.8625">0\.8625 ± 0\.0442</td>'
    assert len(re.findall(cell, text)) == 2  # final and best
    assert '<td class="number key" data-value="0.5">0.5</td>' in text
    assert '<td class="text key" data-value="fedavg">fedavg</td>' in text


def test_differences_say_what_they_are_and_which_are_not_chance(text: str, reader: Reader) -> None:
    found = " ".join(reader.texts["section"][1].split())
    assert found.startswith("Differences from strategy.name=fedavg")
    # alpha 0.5: -0.25 and -0.25 - 1/1024; the interval is 12.706 times 1/2048 to both sides
    assert "−0.2505 [−0.2567, −0.2443] (worse)" in found
    assert re.search(r'<td class="number worse" data-value="-0.25048828125">', text)


@pytest.mark.usefixtures("undrawn")
def test_there_are_no_differences_without_a_baseline(sweep: Path, tmp_path: Path) -> None:
    text = written(sweep, tmp_path / "page.html")
    assert 'id="differences"' not in text and "#differences" not in text and "Baseline" not in text
    assert "<title>Runs by alpha, strategy</title>" in text


def test_runs_that_are_not_complete_are_listed_with_their_reason(reader: Reader) -> None:
    listed = [" ".join(line.split()) for line in reader.texts["li"]]
    assert "cut-off incomplete it is still running, or was killed (0 of 9 rounds on record)" in listed
    assert f"failed failed ValueError: {HOSTILE} (1 of 9 rounds on record)" in listed
    links = {one["href"] for one in reader.all("a")}
    assert {"#run-13", "#run-14"} <= links and "#run-1" not in links


def test_a_traceback_is_shown_without_secrets(reader: Reader) -> None:
    assert f"\nTraceback\n  token=[hidden] {HOSTILE}\n" in reader.texts["pre"]


def test_a_log_is_text_and_no_part_of_the_page(text: str, reader: Reader) -> None:
    logs = [log for log in reader.texts["pre"] if "INFO" in log]
    assert logs == 6 * [f"\nINFO {HOSTILE}\n"]
    assert text.count("</script>") == 1 and "\x1b" not in text
    assert "There is no flower.log in the run folder." in text


def test_nothing_of_a_run_becomes_an_element_or_an_attribute(reader: Reader) -> None:
    assert reader.open == [] and not reader.all("b")
    assert not any(name.startswith("on") or name == "style" for _, found in reader.elements for name in found)


def test_keys_that_are_not_the_default_come_first_then_all(sweep: Path) -> None:
    runs = find_runs(sweep / "avg-10-1")
    (entry,) = run_entries(make_study(find_runs(sweep)), runs)
    changed = {key.name: (key.value, key.used) for key in entry.keys if not key.default}
    assert changed == {
        "seed": ("1", True),
        "rounds": ("1", True),
        "federation.clients": ("2", True),
        "partition.alpha": ("10", True),
        "strategy.name": ("fedavg", True),
        "mask.ratio": ("0.3", False),
    }
    assert [key.name for key in entry.keys] == list(RunConfig().flat())
    assert entry.name == "avg-10-1" and entry.about == "alpha 10, strategy fedavg" and entry.accuracy == "0.8938"
    assert {"partition.alpha=10", "seed=1", "mask.ratio=0.3", "complete"} <= set(entry.words)


def test_what_a_run_came_to_is_not_told_before_its_end(sweep: Path) -> None:
    entries = {entry.name: entry for entry in run_entries(make_study(find_runs(sweep)), find_runs(sweep))}
    assert (entries["failed"].accuracy, entries["failed"].barrier) == ("–", "–")
    assert (entries["pfn-10-0"].accuracy, entries["pfn-10-0"].barrier) == ("0.8313", "0.2500")


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_no_mean_says_so(tmp_path: Path) -> None:
    for name in ("first", "second"):
        a_run(tmp_path / name, {})
    runs = find_runs(tmp_path)
    said = "not averaged: another run of the same experiment has the same seed"
    entries = run_entries(make_study(runs), runs)
    assert {entry.name: entry.reason for entry in entries} == {"first": None, "second": said}
    text = written(tmp_path, tmp_path / "page.html")
    assert text.count(said) == 1
    assert "Not complete, and not averaged" not in text and "Runs of one experiment" in text


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_is_not_there_is_no_reason_to_fail(tmp_path: Path) -> None:
    a_run(tmp_path / "good", {})
    a_run(
        tmp_path / "bad", {"model.name": "no.such:model"}, (0.1,), failure={"reason": "no such model"}, complete=False
    )
    assert "no such model (0 of 9 rounds on record)" in written(tmp_path, tmp_path / "page.html")


@pytest.mark.usefixtures("undrawn")
def test_a_long_log_says_what_was_left_out(tmp_path: Path) -> None:
    a_run(tmp_path / "run", {}, log="".join(f"line {number:05d}\n" for number in range(20_000)))
    text = written(tmp_path, tmp_path / "page.html")
    assert "120 kB of 220 kB are left out here; flower.log in the run folder has them." in text
    assert "line 00000\n" in text and "line 19999\n" in text and "line 10000\n" not in text
    a_run(tmp_path / "run2", {"seed": 1}, log="")
    assert "flower.log is empty." in written(tmp_path, tmp_path / "page.html")


@pytest.mark.usefixtures("undrawn")
def test_text_that_cannot_be_encoded_is_replaced(tmp_path: Path) -> None:
    a_run(tmp_path / "good", {})
    a_run(tmp_path / "bad", {}, (0.1,), failure={"reason": "lone \ud800 surrogate"}, complete=False)
    assert "lone ? surrogate" in written(tmp_path, tmp_path / "page.html")


def test_the_small_picture_of_a_run_is_its_accuracy_from_0_to_1() -> None:
    width, height = CURVE_WIDTH, CURVE_HEIGHT
    rounds = [{"accuracy": value} for value in (0.0, 1.0, None, 0.5, 0.5)]
    assert curve(rounds) == f"M0 {height - 1}L{width // 4} 1M{3 * width // 4} {height // 2}L{width} {height // 2}"
    assert curve(rounds[1:2]) == "M0 1" and curve([]) == ""


# what it is made of


def test_the_page_asks_for_nothing_and_lets_nothing_else_run(text: str, reader: Reader) -> None:
    for tag, attributes in reader.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            if name in attributes:
                assert re.match(r"data:|#", str(attributes[name])), (tag, name)
    assert "url(" not in text and "@import" not in text
    (policy,) = [one["content"] for one in reader.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    digests = {
        tag: "'sha256-" + b64encode(sha256(reader.texts[tag][0].encode()).digest()).decode() + "'"
        for tag in ("style", "script")
    }
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": digests["style"], "script-src": digests["script"],
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert len(reader.all("style")) == len(reader.all("script")) == 1


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    here, there = tmp_path / "runs", tmp_path / "elsewhere" / "runs"
    for seed in (0, 1):
        a_run(here / f"seed-{seed}", {"seed": seed}, log="a line\n")
    shutil.copytree(here, there)
    first, second = (written(root, tmp_path / f"{at}.html", target=0.75) for at, root in enumerate((here, there)))
    assert first == second and first.startswith("<!doctype html>") and "data:image" in first


def test_figures_are_images_with_words_for_those_who_do_not_see_them(reader: Reader) -> None:
    images = reader.all("img")
    assert len(images) >= 6 and len(images) == len(reader.all("figure")) == len(reader.texts["figcaption"])
    for image, caption in zip(images, reader.texts["figcaption"], strict=True):
        assert str(image["alt"]).endswith(f": {caption}") and len(caption) > 40
        assert b"<svg" in b64decode(str(image["src"]).partition("data:image/svg+xml;base64,")[2])
        assert int(str(image["width"])) > 200 and int(str(image["height"])) > 100
    assert len({image["src"] for image in images}) == len(images)


def test_a_figure_of_very_many_points_is_pixels_where_they_take_less(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().scatter(*np.random.default_rng(0).random((2, 5000)))
    drawn = NamedFigure("dots", "Dots.", figure)
    found = page._picture(drawn)
    assert found.uri.startswith("data:image/png;base64,iVBOR") and (found.width, found.height) == (230, 115)
    monkeypatch.setattr(page, "_LARGEST_SVG", 10_000_000)
    assert page._picture(drawn).uri.startswith("data:image/svg+xml;base64,")
