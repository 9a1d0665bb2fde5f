"""The report's page in a browser: it opens from disk, sorts, filters, prints, and asks no network for anything.

Left out by default: ``pytest -m browser`` runs it, with the extra ``browser`` installed and chromium on the path.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import HOSTILE, a_sweep, whole_page

pytestmark = pytest.mark.browser

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    return whole_page(a_sweep(folder / "runs"), folder / "report.html")


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
