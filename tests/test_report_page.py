"""The page of a report: all that it says, nothing that gets out of its place, and what it does in a browser."""

import os
import re
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.report import page
from experiments.report.figures import NamedFigure
from experiments.report.page import write_page
from experiments.report.run_entries import CURVE_HEIGHT, CURVE_WIDTH, curve, run_entries
from experiments.report.study import make_study
from fedpfn.runs import LOG, Run, RunFolder, find_runs
from fedpfn.runs.config import RunConfig

HOSTILE = "</script><b onclick=x>&amp;\"'"


def a_round(number: int, accuracy: float | None, barrier: float) -> dict[str, Any]:
    record: dict[str, Any] = {
        "round": number, "accuracy": accuracy, "loss": 1.0, "clients": [], "train_loss": None, "mask": None,
        "barrier": None, "fusion": None, "bytes_up": 0, "bytes_down": 0, "failures": [], "seconds": {},
    }  # fmt: skip
    if number == 0:
        return record
    pairs = {"accuracy_mean": barrier, "accuracy_max": barrier, "loss_mean": 0.0, "loss_max": 0.0}
    return record | {
        "clients": [0, 1],
        "train_loss": 0.5,
        "mask": {"schedule": "per-round", "ratio": 0.4, "frozen": 0.4, "untouched": 0.4, "phases": 1},
        "barrier": pairs | {"pairs": 1, "points": 3},
        "fusion": {"accuracy": accuracy, "barrier": 0.0},
        "bytes_up": 10,
        "bytes_down": 20,
    }


def a_run(
    path: Path,
    keys: dict[str, Any],
    accuracies: Sequence[float | None] = (0.1, 0.5, 0.7),
    *,
    barrier: float = 0.25,
    log: str | None = None,
    failure: dict[str, Any] | None = None,
    complete: bool = True,
) -> None:
    """Write a run of two clients with a round for each of ``accuracies``."""
    folder = RunFolder(path)
    planned = max(len(accuracies) - 1, 1) if complete else 9
    folder.write_config(RunConfig.parse({"rounds": planned, "federation.clients": 2} | keys), device="cpu")
    for number, accuracy in enumerate(accuracies):
        if number:
            matrix = np.array([[0, barrier], [barrier, 0]])
            ends = np.array([0.25, 0.75])
            folder.write_barriers(
                number,
                {
                    "clients": np.arange(2), "pairs": np.array([[0, 1]]), "alphas": np.array([0, 0.5, 1]),
                    "loss": np.array([[1, 2, 1.0]]), "accuracy": np.array([[0.75, 0.5, 0.25]]),
                    "loss_matrix": matrix, "accuracy_matrix": matrix, "client_loss": ends, "client_accuracy": ends,
                    "convention": np.array("theta(alpha) = alpha * first + (1 - alpha) * second"),
                },
            )  # fmt: skip
        folder.append_round(a_round(number, accuracy, barrier))
    if failure is not None:
        folder.write_failure(failure)
    elif complete:
        folder.write_summary({"rounds": len(accuracies) - 1, "devices": ["cpu"]})
    if log is not None:
        (path / LOG).write_text(log)
    folder.close()


ALPHAS = (0.5, 10.0, 5.0)


def a_sweep(root: Path) -> Path:
    """Write FedAvg and FedPFN at three alphas, two seeds each; one run that failed and one that is not finished."""
    for at, alpha in enumerate(ALPHAS):
        for seed in (0, 1):
            keys = {"partition.alpha": alpha, "seed": seed, "mask.ratio": 0.3}
            final = 0.8 + 0.03125 * at + 0.0625 * seed
            a_run(root / f"avg-{alpha:g}-{seed}", keys | {"strategy.name": "fedavg"}, (0.1, final))
            # the seeds differ a little from the baseline's, so that there is an interval
            lower = final - (0.25, 0.0, 0.125)[at] - 2**-10 * seed
            a_run(root / f"pfn-{alpha:g}-{seed}", keys, (0.1, lower), log=f"\x1b[32mINFO\x1b[0m {HOSTILE}\n")
    failure = {
        "reason": f"ValueError: {HOSTILE}",
        "rounds": 1,
        "traceback": f"Traceback\n  token=hunter222 {HOSTILE}\n",
    }
    a_run(root / "failed", {"strategy.name": "fedpnu"}, (0.1, None), failure=failure, complete=False)
    a_run(root / "cut-off", {"strategy.name": "fedpnu", "mask.include": HOSTILE}, (0.1,), complete=False)
    return root


def written(root: Path, path: Path, **options: Any) -> str:
    runs = find_runs(root)
    return write_page(make_study(runs), runs, path, **options).read_text(encoding="utf-8")


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
    monkeypatch.setattr(page, "run_figures", lambda run, *, trust, say: [])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def whole(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the sweep, with all that a page may have."""
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    options: dict[str, Any] = {"target": 0.75, "baseline": ["strategy.name=fedavg"]}
    written(sweep, path, title=f"Title {HOSTILE}", question=f"Why? {HOSTILE}", **options)
    return path


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
    cell = r'<td class="number" data-value="0\.8625">0\.8625<span class="spread"> ± 0\.0442</span></td>'
    assert len(re.findall(cell, text)) == 2  # final and best
    assert '<td class="number key" data-value="0.5">0.5</td>' in text
    assert '<td class="text key" data-value="fedavg">fedavg</td>' in text


def test_differences_say_what_they_are_and_which_are_not_chance(text: str, reader: Reader) -> None:
    found = " ".join(reader.texts["section"][1].split())
    assert found.startswith("Differences to strategy.name=fedavg")
    # alpha 0.5: -0.25 and -0.25 - 1/1024; the interval is 12.706 times 1/2048 to both sides
    assert "−0.2505 [−0.2567, −0.2443] (worse)" in found
    assert re.search(r'<td class="number worse" data-value="-0.25048828125">', text)


@pytest.mark.usefixtures("undrawn")
def test_there_are_no_differences_without_a_baseline(sweep: Path, tmp_path: Path) -> None:
    text = written(sweep, tmp_path / "page.html")
    assert 'id="differences"' not in text and "#differences" not in text and "Baseline" not in text
    assert "<title>Runs by alpha, strategy</title>" in text


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_may_be_a_mapping_and_its_faults_leave_no_page(tmp_path: Path) -> None:
    for name, keys in {"avg": {"strategy.name": "fedavg"}, "two": {"mask.ratio": 0.2}, "four": {}}.items():
        a_run(tmp_path / name, keys)
    path = tmp_path / "page.html"
    faults: list[tuple[Any, str]] = [
        ({"strategy.name": "fedpfn"}, "add to the baseline mask.ratio=0.2 or 0.4"),
        (["strategy.nam=fedavg"], "unknown key 'strategy.nam'"),
    ]
    for baseline, fault in faults:
        with pytest.raises(ValueError, match=fault) as caught:
            written(tmp_path, path, baseline=baseline)
        assert "\n" not in str(caught.value) and not path.exists()
    assert "Differences to strategy.name=fedavg" in written(tmp_path, path, baseline={"strategy.name": "fedavg"})


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


def test_both_lists_of_keys_are_on_the_page(text: str) -> None:
    one = text[text.index('id="run-1"') : text.index('id="run-2"')]
    first, second = one.split(f"All {len(RunConfig().flat())} keys")
    assert first.count("<dt>") == 5 and second.count("<dt>train.lr</dt>") == 1
    idle = '<div class="idle"><dt>mask.ratio</dt><dd>0.3 <span class="aside">no effect</span></dd></div>'
    assert idle in first and idle in second
    assert "<dt>versions.torch</dt>" in second


def test_rounds_are_a_table_with_dashes_for_what_was_not_measured(sweep: Path) -> None:
    (entry,) = run_entries(make_study(find_runs(sweep)), find_runs(sweep / "avg-10-1"))
    assert [[cell.text for cell in row] for row in entry.rounds.rows] == [
        ["0", "0.1000", "1.0000", "–", "–", "–", "–", "–", "–", "–", "–"],
        ["1", "0.8938", "1.0000", "0.5000", "2", "40%", "0.2500", "0.2500", "0.8938", "10 B", "20 B"],
    ]


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


def test_the_widest_figures_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [NamedFigure(str(width), "A caption.", Figure(figsize=(width, 1))) for width in (1, 7, 2, 7.0)]
    assert [picture.name for picture in page._pictures(drawn)] == ["7", "7.0", "2", "1"]
    assert [picture.wide for picture in page._pictures(drawn)] == [True, True, False, False]


def test_a_picture_that_is_the_same_for_several_runs_is_shown_once(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(run: Run, *, trust: bool, say: Any) -> list[NamedFigure]:
        say(f"other: nothing in {run.path}/barriers")
        return [NamedFigure("partition", "A caption.", Figure(figsize=(run.config.partition.alpha / 10 + 1, 1)))]

    monkeypatch.setattr(page, "run_figures", drawn)
    runs = [find_runs(sweep / name)[0] for name in ("avg-5-0", "pfn-5-0", "pfn-10-0")]
    (_, once, no), (_, again, why), (_, other, _) = page._inside(runs)
    assert [one.name for one in once] == ["partition"] and again == [] and len(other) == 1
    assert no == [f"other: nothing in {sweep.name}/avg-5-0/barriers"]
    assert why[1].startswith("partition: the same as under FedAvg · digits")


# in a browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def absent(what: str) -> None:
    """Skip where there is no browser; on a machine of continuous integration, where there must be one, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI is set: the page must be tested in a browser")
    pytest.skip(f"{what}: install it to test the page in a browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("the package playwright is not installed")
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        absent(f"none of {', '.join(PROGRAMS)} is on the path")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


def test_where_there_is_no_browser_tests_are_skipped_but_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such program: install it"):
        absent("no such program")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such program, and CI is set"):
        absent("no such program")


class Watched:
    """A page that is open in the browser, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.url = path.as_uri()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(**({"viewport": {"width": 1280, "height": 800}} | options))
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.url)

    def column(self, table: int, place: int) -> list[str]:
        cells = self.page.locator("table.sortable").nth(table).locator(f"tbody td:nth-child({place + 1})")
        return [" ".join(cell.split()) for cell in cells.all_text_contents()]

    def head(self, table: int, place: int) -> Any:
        return self.page.locator("table.sortable").nth(table).locator("th").nth(place)

    def names(self) -> list[str]:
        return self.page.locator("details.run:visible .name").all_text_contents()  # type: ignore[no-any-return]


@pytest.fixture
def open_page(browser: Any, whole: Path) -> Iterator[Watched]:
    watched = Watched(browser, whole)
    yield watched
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith("data:")] == [watched.url]
    watched.page.close()


def test_it_opens_from_disk_and_says_and_asks_nothing(open_page: Watched) -> None:
    assert open_page.url.startswith("file:///") and open_page.page.title() == f"Title {HOSTILE}"
    assert open_page.page.evaluate("document.compatMode") == "CSS1Compat"
    # the policy let the page's own style and script in
    assert open_page.page.locator("#filter").is_visible()
    assert open_page.page.evaluate("getComputedStyle(document.querySelector('.facts')).display") == "flex"


def test_every_figure_is_visible_and_in_colour(open_page: Watched) -> None:
    images = open_page.page.locator("img")
    assert images.count() >= 6
    for at in range(images.count()):
        image = images.nth(at)
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        assert image.is_visible() and box is not None and box["width"] > 150 and box["height"] > 80
        assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
        # drawn onto a canvas, so that a picture without its styles, or without anything, is found
        colours = image.evaluate(
            """image => {
                const canvas = Object.assign(document.createElement("canvas"), {width: 300, height: 200});
                const pen = canvas.getContext("2d");
                pen.drawImage(image, 0, 0, 300, 200);
                const data = pen.getImageData(0, 0, 300, 200).data, found = new Set();
                for (let at = 0; at < data.length; at += 4) found.add(data.slice(at, at + 3).join());
                return found.size;
            }"""
        )
        assert colours > 30


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_a_head_sorts_its_column_up_and_down(open_page: Watched, how: str) -> None:
    def press(place: int) -> None:
        button = open_page.head(0, place).locator("button")
        if how == "click":
            button.click()
        else:
            button.focus()
            open_page.page.keyboard.press("Enter")

    final = 3  # alpha, strategy, n, final accuracy
    before = open_page.column(0, final)
    exact = [f"{0.8 + 0.03125 * at + 0.03125:.4f}" for at in range(3)]
    press(final)
    up = open_page.column(0, final)
    assert up == sorted(before) and up != before and up[3:5] != up[4:6]
    assert {text[:6] for text in up if text[:6] in exact} == set(exact)
    assert open_page.head(0, final).get_attribute("aria-sort") == "ascending"
    press(final)
    assert open_page.column(0, final) == sorted(before, reverse=True)
    assert open_page.head(0, final).get_attribute("aria-sort") == "descending"
    press(0)
    assert open_page.column(0, 0) == ["0.5", "0.5", "5", "5", "10", "10"]
    assert [open_page.head(0, at).get_attribute("aria-sort") for at in (0, final)] == ["ascending", "none"]
    # the other table has an order of its own
    assert open_page.head(1, final).get_attribute("aria-sort") == "none"


def test_rows_of_equal_value_keep_their_order(open_page: Watched) -> None:
    strategies = open_page.column(0, 1)
    open_page.head(0, 1).locator("button").click()
    assert open_page.column(0, 1) == 3 * ["fedavg"] + 3 * ["fedpfn"]
    assert open_page.column(0, 0) == ["0.5", "5", "10"] * 2
    open_page.head(0, 1).locator("button").click()
    assert open_page.column(0, 1) == 3 * ["fedpfn"] + 3 * ["fedavg"]
    assert open_page.column(0, 0) == ["0.5", "5", "10"] * 2
    open_page.head(0, 2).locator("button").click()
    assert open_page.column(0, 1) == 3 * ["fedpfn"] + 3 * ["fedavg"] and strategies[:2] == ["fedavg", "fedpfn"]


def test_numbers_below_0_sort_as_numbers_and_what_is_missing_stays_last(open_page: Watched) -> None:
    # the second table is on traffic: rounds to 0.75, which FedPFN does not reach at alpha 0.5 and 5
    reached = 3
    for _ in range(2):
        open_page.head(1, reached).locator("button").click()
        assert open_page.column(1, reached)[-1].startswith("–") and not open_page.column(1, reached)[0].startswith("–")
    tables = open_page.page.locator("#results table").count()
    open_page.head(tables, 3).locator("button").click()
    assert [cell[:7] for cell in open_page.column(tables, 3)] == ["−0.2505", "−0.1255", "−0.0005"]


def test_a_run_opens_to_its_config_and_its_log(open_page: Watched) -> None:
    run = open_page.page.locator("details.run", has_text="pfn-10-0")
    inside = run.locator("> .inside")
    assert not inside.is_visible()
    run.locator("> summary").click()
    assert inside.is_visible() and run.get_by_text("mask.ratio", exact=True).first.is_visible()
    assert run.locator("table.plain tbody tr").count() == 2 and run.locator("table.plain").is_visible()
    log = run.locator(".log pre")
    assert not log.is_visible()
    run.locator(".log > summary").click()
    assert log.is_visible() and log.inner_text().strip() == f"INFO {HOSTILE}"


FOUND = {
    "failed": {"failed"},
    "FedPFN alpha=5": {"pfn-5-0", "pfn-5-1"},
    "partition.alpha=5 seed=1": {"avg-5-1", "pfn-5-1"},
    "alpha=0": set(),
    "-10-": {"avg-10-0", "avg-10-1", "pfn-10-0", "pfn-10-1"},
}


def test_the_box_leaves_the_runs_that_have_all_words(open_page: Watched) -> None:
    box = open_page.page.get_by_role("searchbox", name="Show runs with")
    for words, names in FOUND.items():
        box.fill(words)
        assert set(open_page.names()) == names, words
        assert open_page.page.locator("#shown").inner_text() == f"{len(names)} of 14"
        box.press("Enter")
        assert open_page.page.url == open_page.url
        box.fill("")
        assert len(open_page.names()) == 14


def test_a_link_opens_the_run_even_where_the_box_hid_it(open_page: Watched) -> None:
    open_page.page.locator("#words").fill("fedavg")
    open_page.page.locator(".unfinished a", has_text="failed").click()
    run = open_page.page.locator("details.run.failed")
    assert run.get_attribute("open") is not None and run.locator(".reason").is_visible()
    assert len(open_page.names()) == 14


@pytest.mark.parametrize("width", [375, 768, 1280, 1920])
def test_the_page_is_no_wider_than_the_window(browser: Any, whole: Path, width: int) -> None:
    watched = Watched(browser, whole, viewport={"width": width, "height": 800})
    watched.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert watched.page.evaluate("document.documentElement.scrollWidth") == width
    # a table that is wider scrolls in its own frame
    frames = watched.page.evaluate("[...document.querySelectorAll('.scroll')].map(f => [f.scrollWidth, f.clientWidth])")
    assert all(inner <= width for _, inner in frames)
    wider = [content > inner for content, inner in frames]
    assert any(wider) if width == 375 else width < 1280 or not any(wider)
    watched.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Any, whole: Path, scheme: str) -> None:
    watched = Watched(browser, whole, color_scheme=scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    colour = {
        name: watched.page.evaluate(style.format(name))
        for name in ("paper", "raised", "ink", "muted", "accent", "better", "worse")
    }
    for ground in ("paper", "raised"):
        for ink in ("ink", "muted", "accent", "better", "worse"):
            # the level AA of WCAG 2
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    assert (luminance(colour["paper"]) < 0.1) == (scheme == "dark")
    ground = watched.page.evaluate("getComputedStyle(document.querySelector('.frame')).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    watched.page.close()


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_on_paper_there_is_nothing_to_press_and_nothing_is_cut(browser: Any, whole: Path) -> None:
    watched = Watched(browser, whole, color_scheme="dark")
    watched.page.emulate_media(media="print")
    assert not watched.page.locator("#filter").is_visible() and not watched.page.locator("nav").is_visible()
    assert watched.page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(253, 252, 250)"
    watched.page.close()


def test_without_scripts_all_can_be_read(browser: Any, whole: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(whole.as_uri())
    assert not plain.locator("#filter").is_visible()
    assert plain.locator("details.run:visible").count() == 14 and plain.locator("table.sortable").first.is_visible()
    context.close()
