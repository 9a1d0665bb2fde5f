"""Experiments as files: the cells that follow from them, what is refused and in which words, and every packaged one."""

from functools import cache
from pathlib import Path

import pytest

from experiments.lab.config import LabConfig
from experiments.lab.experiment import CONF, Cell, Experiment, packaged_experiments, read_experiment
from experiments.lab.figures import FIGURES
from experiments.lab.report import METHOD
from fedpfn.runs.config import ConfigError
from fedpfn.runs.keys import key_specs

PACKAGED = [CONF / f"{name}.yaml" for name, _ in packaged_experiments()]


@cache
def packaged(file: Path, *, quick: bool) -> tuple[Experiment, list[Cell]]:
    """A packaged experiment and its cells, which take their time: built once for the tests that look at them."""
    return read_experiment(file, quick=quick)


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


TWO_BY_TWO = """
title: Two by two
seeds: 3
base: {model: {hidden: 1}, train: {epochs: 2, lr: 0.5}}
quick: {seeds: 1, train: {epochs: 1}, grid: {mask.ratio: [0.3]}}
cases:
  deep: {model: {hidden: 4}, train: {epochs: 9}}
  plain: {}
grid:
  train.method: [vanilla, tna-pfn]
  mask.ratio: [0.2, 0.6]
"""


def cells_of(tmp_path: Path, text: str, *words: str, quick: bool = False) -> list[Cell]:
    return read_experiment(written(tmp_path, text), words, quick=quick)[1]


def faults_of(tmp_path: Path, text: str, *words: str, quick: bool = False) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        cells_of(tmp_path, text, *words, quick=quick)
    return caught.value.faults


def test_cells_are_cases_by_axes_by_seeds_in_that_order(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, TWO_BY_TWO)
    assert len(cells) == 2 * 2 * 2 * 3 and len({cell.key for cell in cells}) == 24
    assert [(c.case, *c.axes.values(), c.seed) for c in cells[:4]] == [
        ("deep", "vanilla", 0.2, 0),
        ("deep", "vanilla", 0.2, 1),
        ("deep", "vanilla", 0.2, 2),
        ("deep", "vanilla", 0.6, 0),
    ]
    first = cells[0].config
    assert (first.model.hidden, first.train.epochs, first.train.lr, first.mask.ratio, first.seed) == (4, 9, 0.5, 0.2, 0)


def test_quick_wins_over_cases_and_words_over_everything(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, TWO_BY_TWO, quick=True)
    assert len(cells) == 4 and {cell.config.train.epochs for cell in cells} == {1}
    cells = cells_of(tmp_path, TWO_BY_TWO, "train.epochs=5", "mask.ratio=0.5", "seeds=2", "seed=7", quick=True)
    assert len(cells) == 2 * 2 * 2 and {cell.seed for cell in cells} == {7, 8}
    assert {(cell.config.train.epochs, cell.config.mask.ratio, cell.axes["mask.ratio"]) for cell in cells} == {
        (5, 0.5, 0.5)
    }


def test_cases_can_be_chosen(tmp_path: Path) -> None:
    experiment, cells = read_experiment(written(tmp_path, TWO_BY_TWO), cases=["plain"])
    assert list(experiment.cases) == ["plain"] and {cell.case for cell in cells} == {"plain"} and len(cells) == 12
    assert {cell.key for cell in cells} < {cell.key for cell in cells_of(tmp_path, TWO_BY_TWO)}
    with pytest.raises(ConfigError, match=r"no case 'plan' in .*; it has deep, plain"):
        read_experiment(written(tmp_path, TWO_BY_TWO), cases=["plan"])


def test_words_are_kept_and_an_axis_they_name_has_that_one_value(tmp_path: Path) -> None:
    experiment, cells = read_experiment(written(tmp_path, TWO_BY_TWO), ["train.method=tna-pfn", "train.lr=0.1"])
    assert experiment.words == {"train.method": "tna-pfn", "train.lr": 0.1} and experiment.form == "full"
    assert experiment.grid["train.method"] == ["tna-pfn"] and len(cells) == 2 * 2 * 3


def test_paths_become_absolute_and_do_not_make_another_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (here,) = cells_of(tmp_path, "base: {data: {root: here}}")
    (there,) = cells_of(tmp_path, "base: {data: {root: /there}}")
    assert here.config.data.root == str(tmp_path / "here") and here.key == there.key


def test_a_case_may_be_named_by_a_number(tmp_path: Path) -> None:
    assert [cell.case for cell in cells_of(tmp_path, "cases: {1: {}, 2: {}}")] == ["1", "2"]


def test_a_cells_key_is_its_config_and_not_its_place(tmp_path: Path) -> None:
    turned = TWO_BY_TWO.replace("[0.2, 0.6]", "[0.6, 0.2]").replace("lr: 0.5", "lr: 0.50")
    assert {c.key for c in cells_of(tmp_path, TWO_BY_TWO)} == {c.key for c in cells_of(tmp_path, turned)}
    assert not {c.key for c in cells_of(tmp_path, TWO_BY_TWO)} & {
        c.key for c in cells_of(tmp_path, TWO_BY_TWO, "train.lr=0.4")
    }
    # stable across machines and versions: a folder is taken up again by these
    assert cells_of(tmp_path, "base: {}")[0].key == cells_of(tmp_path, "seeds: 1")[0].key


def test_all_faults_of_all_cells_are_named_at_once(tmp_path: Path) -> None:
    text = "base: {train: {lrr: 1}}\ncases: {a: {}, b: {model: {hidden: -1}}}"
    found = faults_of(tmp_path, text)
    assert len(found) == 3 and found[0].startswith("a: unknown key 'train.lrr'; did you mean 'train.lr'?")
    assert any("b: model.hidden must be at least 0" in fault for fault in found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tittle: x", "unknown key 'tittle'; known are title"),
        ("kind: sibling", "kind must be one of siblings, theorem, soup, cold, got 'sibling'"),
        ("seeds: 0", "seeds must be a whole number, 1 or more"),
        ("seeds: many", "seeds must be a whole number"),
        ("title: 3", "title must be a str, got 3"),
        ("grid: {mask.ratio: 0.4}", "grid axis mask.ratio must be a list"),
        ("grid: {mask.ratio: []}", "grid axis mask.ratio must be a list"),
        ("- 1", "holds no table"),
        ("a: [", "cannot be read"),
        ("base: {barrier: {points: 4}}", "barrier.points must be odd"),
        ("base: {theorem: {points: 4}}", "theorem.points must be odd"),
        ("base: {start: {kind: file}}", "start.kind=file and start.path belong together"),
        ("base: {start: {kind: independent}, train: {spawn-share: 0.1}}", "train.spawn-share has no meaning"),
        ("base: {measure: {plane: true}}", "measure.plane needs train.models of 3 or more, got 2"),
        ("base: {measure: {calibration: true}}", "measure.calibration needs data.held-out"),
        ("base: {match: {methods: 'weight, magic'}}", "match.methods has 'magic'"),
        ("base: {soup: {epochs: '1.5'}}", "soup.epochs must be whole numbers"),
        ("cases: {A: 5}", "case A must be a table"),
        ("measures: [3]", "measures must be names"),
        ("grid: {a: [1]}\npublished: [3]", "a published entry must be a table"),
        ("cases: {A: {}}\npublished: [{case: B}]", "published has case 'B', which is none of A"),
        ("measures: [m]\npublished: [{m: abc}]", "published m must be a number, got 'abc'"),
        ("measures: [m]\npublished: [{train.metod: vanilla, m: 1}]", "published has 'train.metod', which is no axis"),
        ("figures: [bars]", "a figure must be a table with a kind, got 'bars'"),
        ("base: {soup: {lrs: 'a,b'}}", "soup.lrs must be positive numbers"),
        ("base: {soup: {epochs: '0'}}", "soup.epochs must be whole numbers, 1 or more"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    found = faults_of(tmp_path, text)
    assert len(found) == 1 and told in found[0] and "\n" not in found[0]


def test_words_are_checked_like_the_file(tmp_path: Path) -> None:
    assert "seeds must be a whole number" in faults_of(tmp_path, "seeds: 1", "seeds=none")[0]
    assert "`fedpfn lmc keys` lists them all" in faults_of(tmp_path, "seeds: 1", "qqqq=1")[0]
    assert "has no quick form" in faults_of(tmp_path, "seeds: 1", quick=True)[0]


def test_an_experiment_that_is_nowhere_names_a_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean paper/table3_mnist"):
        read_experiment(Path("paper/table3_mnst"))


def test_a_packaged_experiment_is_found_by_its_name() -> None:
    assert read_experiment(Path("paper/table3_mnist"))[0].name == "table3_mnist"


def test_there_is_an_experiment_for_each_table_and_figure() -> None:
    names = {name.removeprefix("paper/") for name, _ in packaged_experiments()}
    wanted = {"table1", "table2", "table3", "table4", "figure2", "figure3", "figure4", "figure5", "layers", "width"}
    assert all(any(name.startswith(one) for name in names) for one in wanted)
    assert {"layers_mnist", "layers_cifar10", "theorem32", "soup_vit", "cold_fusion"} <= names


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("file", PACKAGED, ids=lambda file: file.stem)
def test_every_packaged_experiment_builds_its_cells_in_both_forms(file: Path, quick: bool) -> None:
    experiment, cells = packaged(file, quick=quick)
    assert cells and experiment.title and experiment.source and experiment.question.endswith("?")
    assert {entry["kind"] for entry in experiment.figures} <= FIGURES.keys()
    check_published(experiment)


def check_published(experiment: Experiment) -> None:
    """Every published entry stands at an address that there is, with measures that are reported."""
    for entry in experiment.published:
        assert entry["case"] in experiment.cases
        assert entry[METHOD] in experiment.grid[METHOD]
        assert entry.keys() - {"case", METHOD} <= set(experiment.measures)


def test_the_quick_form_is_less_work() -> None:
    for file in PACKAGED:
        full, quick = (packaged(file, quick=form)[1] for form in (False, True))
        assert len(quick) <= len(full) and {c.key for c in quick} != {c.key for c in full}


def test_every_key_says_what_it_is() -> None:
    for spec in key_specs(LabConfig):
        assert spec.about and type(spec.default) is spec.type and spec.default in (spec.choices or (spec.default,))
