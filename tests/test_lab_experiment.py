"""Experiments of the laboratory as files: the cells that follow, what is refused, and every packaged one."""

from functools import cache
from pathlib import Path

import pytest
from experiment_results import METHOD, written

from experiments.lab.config import LabConfig
from experiments.published.figures import FIGURES
from experiments.sweep.cells import Cell, expand
from experiments.sweep.file import SweepFile, packaged_names, read_sweep
from experiments.sweep.kinds import FEDERATION
from fedpfn.runs.config import ConfigError
from fedpfn.runs.keys import key_specs


def file_of(name: str, *, quick: bool) -> SweepFile:
    return read_sweep(Path(name), workdir=Path.cwd(), quick=quick)


@cache
def packaged(name: str, *, quick: bool) -> tuple[SweepFile, list[Cell]]:
    """A packaged experiment and its cells, which take their time: built once for the tests that look at them."""
    sweep = file_of(name, quick=quick)
    return sweep, expand(sweep)


PACKAGED = [name for name in packaged_names() if file_of(name, quick=False).kind.name != FEDERATION]


TWO_BY_TWO = """
title: Two by two
kind: siblings
seeds: 3
base: {model: {hidden: 1}, train: {epochs: 2, lr: 0.5}}
quick: {seeds: 1, base: {train: {epochs: 1}}, grid: {train.method: [vanilla, tna-pfn], mask.ratio: [0.3]}}
cases:
  deep: {model: {hidden: 4}, train: {epochs: 9}}
  plain: {}
grid:
  train.method: [vanilla, tna-pfn]
  mask.ratio: [0.2, 0.6]
"""


def faults_of(tmp_path: Path, text: str, *words: str, quick: bool = False) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, text, *words, quick=quick)
    return caught.value.faults


def test_cells_are_cases_by_axes_by_seeds_in_that_order(tmp_path: Path) -> None:
    cells = written(tmp_path, TWO_BY_TWO)
    assert len(cells) == 2 * 2 * 2 * 3 and len({cell.address for cell in cells}) == 24
    spots = [(spot.case, *spot.axes.values(), cell.config.seed) for cell in cells[:4] for spot in cell.spots]
    assert spots == [
        ("deep", "vanilla", 0.2, 0),
        ("deep", "vanilla", 0.2, 1),
        ("deep", "vanilla", 0.2, 2),
        ("deep", "vanilla", 0.6, 0),
    ]
    first = cells[0].config
    assert (first.model.hidden, first.train.epochs, first.train.lr, first.mask.ratio, first.seed) == (4, 9, 0.5, 0.2, 0)
    assert cells[0].label == "deep_method=vanilla_ratio=0.2_seed=0"


def test_quick_wins_over_cases_and_words_over_everything(tmp_path: Path) -> None:
    cells = written(tmp_path, TWO_BY_TWO, quick=True)
    assert len(cells) == 4 and {cell.config.train.epochs for cell in cells} == {1}
    words = ("train.epochs=5", "mask.ratio=0.5", "seeds=2", "seed=7")
    cells = written(tmp_path, TWO_BY_TWO, *words, quick=True)
    assert len(cells) == 2 * 2 * 2 and {cell.config.seed for cell in cells} == {7, 8}
    assert {(cell.config.train.epochs, cell.config.mask.ratio, cell.spots[0].axes["mask.ratio"]) for cell in cells} == {
        (5, 0.5, 0.5)
    }


def test_cases_can_be_chosen(tmp_path: Path) -> None:
    cells = written(tmp_path, TWO_BY_TWO, cases=["plain"])
    assert {cell.spots[0].case for cell in cells} == {"plain"} and len(cells) == 12
    assert {cell.address for cell in cells} < {cell.address for cell in written(tmp_path, TWO_BY_TWO)}
    with pytest.raises(ConfigError, match=r"no case 'plan' in .*; it has deep, plain"):
        written(tmp_path, TWO_BY_TWO, cases=["plan"])


def test_cases_are_for_federations_too_and_one_cell_may_stand_in_several_places(tmp_path: Path) -> None:
    text = """
    cases: {small: {model.width: 8}, large: {model: {width: 64}, train.lr: 0.2}}
    grid: {strategy.name: [fedavg, fedpfn], mask.ratio: [0.2, 0.6]}
    """
    cells = written(tmp_path, text)
    # FedAvg has no mask
    assert [cell.label for cell in cells[:3]] == [
        "small_fedavg_seed=0", "small_fedpfn_ratio=0.2_seed=0", "small_fedpfn_ratio=0.6_seed=0",
    ]  # fmt: skip
    assert [spot.axes["mask.ratio"] for spot in cells[0].spots] == [0.2, 0.6]
    assert {cell.config.train.lr for cell in cells[3:]} == {0.2} and {c.config.model.width for c in cells[:3]} == {8}


def test_words_are_kept_and_an_axis_they_name_has_that_one_value(tmp_path: Path) -> None:
    cells = written(tmp_path, TWO_BY_TWO, "train.method=tna-pfn", "train.lr=0.1")
    sweep = read_sweep(tmp_path / "mine.yaml", ["train.method=tna-pfn", "train.lr=0.1"], workdir=tmp_path)
    assert sweep.words == {"train.method": "tna-pfn", "train.lr": 0.1} and sweep.form == "full"
    assert sweep.axes["train.method"] == ["tna-pfn"] and len(cells) == 2 * 2 * 3


def test_paths_become_absolute_and_do_not_make_another_cell(tmp_path: Path) -> None:
    (here,) = written(tmp_path, "{kind: siblings, base: {data: {root: here}}}")
    (there,) = written(tmp_path, "{kind: siblings, base: {data: {root: /there}}}")
    assert here.config.data.root == str(tmp_path / "here") and here.address == there.address


def test_a_case_may_be_named_by_a_number(tmp_path: Path) -> None:
    cells = written(tmp_path, "{kind: siblings, cases: {1: {model.width: 8}, 2: {model.width: 9}}}")
    assert [cell.spots[0].case for cell in cells] == ["1", "2"]


def test_a_cells_address_is_its_config_and_not_its_place(tmp_path: Path) -> None:
    turned = TWO_BY_TWO.replace("[0.2, 0.6]", "[0.6, 0.2]").replace("lr: 0.5", "lr: 0.50")
    addresses = {cell.address for cell in written(tmp_path, TWO_BY_TWO)}
    assert addresses == {cell.address for cell in written(tmp_path, turned)}
    assert not addresses & {cell.address for cell in written(tmp_path, TWO_BY_TWO, "train.lr=0.4")}
    # stable across machines and versions: a folder is taken up again by these
    (cell,) = written(tmp_path, "kind: siblings")
    assert cell.address == "575edb973a0d"


def test_a_cell_that_keeps_its_models_is_another_and_so_is_one_of_another_kind(tmp_path: Path) -> None:
    texts = ["kind: siblings", "{kind: siblings, base: {output.save-models: true}}", "kind: cold", "kind: federation"]
    assert len({written(tmp_path, text)[0].address for text in texts}) == 4


def test_all_faults_of_all_cells_are_named_at_once(tmp_path: Path) -> None:
    text = "kind: siblings\nbase: {train: {lrr: 1}}\ncases: {a: {}, b: {model: {hidden: -1}}}"
    found = faults_of(tmp_path, text)
    assert len(found) == 2 and "base: unknown key 'train.lrr'; did you mean 'train.lr'?" in found[0]
    assert "case b: model.hidden must be at least 0" in found[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tittle: x", "unknown key 'tittle'; did you mean 'title'?"),
        ("kind: sibling", "kind must be one of federation, siblings, theorem, soup, cold, got 'sibling'"),
        ("seeds: many", "seeds: must be a list of one or more seeds, or their number"),
        ("title: 3", "title must be text, got 3"),
        ("grid: {mask.ratio: 0.4}", "grid: mask.ratio must be a list"),
        ("grid: {mask.ratio: []}", "grid: mask.ratio must be a list"),
        ("base: {rounds: 4}", "base: unknown key 'rounds'; did you mean 'cold.rounds'?"),
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
        ("published: [3]", "a published entry must be a table"),
        ("cases: {A: {}}\npublished: [{case: B}]", "published has case 'B', which is none of A"),
        ("measures: [m]\npublished: [{m: abc}]", "published m must be a number, got 'abc'"),
        (
            "measures: [m]\npublished: [{train.metod: vanilla, m: 1}]",
            "published has 'train.metod', which is neither an axis",
        ),
        ("figures: [bars]", "a figure must be a table with a kind, got 'bars'"),
        ("base: {soup: {lrs: 'a,b'}}", "soup.lrs must be positive numbers"),
        ("base: {soup: {epochs: '0'}}", "soup.epochs must be whole numbers, 1 or more"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    found = faults_of(tmp_path, text if text.startswith("kind") else f"kind: siblings\n{text}")
    assert len(found) == 1 and words in found[0] and "\n" not in found[0]


def test_words_are_checked_like_the_file(tmp_path: Path) -> None:
    assert "seeds must be a whole number" in faults_of(tmp_path, "kind: siblings", "seeds=none")[0]
    assert "`fedpfn lmc keys` lists them all" in faults_of(tmp_path, "kind: siblings", "qqqq=1")[0]


def test_an_experiment_that_is_nowhere_names_a_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean paper/table3_mnist"):
        read_sweep(Path("paper/table3_mnst"), workdir=Path.cwd())


def test_there_is_an_experiment_for_each_table_and_figure() -> None:
    names = {name.removeprefix("paper/") for name in PACKAGED}
    wanted = {"table1", "table2", "table3", "table4", "figure2", "figure3", "figure4", "figure5", "layers", "width"}
    assert all(any(name.startswith(one) for name in names) for one in wanted)
    assert {"layers_mnist", "layers_cifar10", "theorem32", "soup_vit", "cold_fusion"} <= names


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_experiment_builds_its_cells_in_both_forms(name: str, quick: bool) -> None:
    experiment, cells = packaged(name, quick=quick)
    assert cells and experiment.title and experiment.source and experiment.question.endswith("?")
    assert {entry["kind"] for entry in experiment.comparison.figures} <= FIGURES.keys()
    # every published entry stands at an address that there is, with measures that are reported
    for entry in experiment.comparison.published:
        assert entry["case"] in experiment.cases
        assert entry[METHOD] in experiment.axes[METHOD]
        assert entry.keys() - {"case", METHOD} <= set(experiment.comparison.measures)


def test_the_quick_form_is_less_work() -> None:
    for name in PACKAGED:
        full, quick = (packaged(name, quick=form)[1] for form in (False, True))
        assert len(quick) <= len(full) and {c.address for c in quick} != {c.address for c in full}


def test_every_key_says_what_it_is() -> None:
    for spec in key_specs(LabConfig):
        assert spec.about and type(spec.default) is spec.type and spec.default in (spec.choices or (spec.default,))
