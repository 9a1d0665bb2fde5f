"""Sweep files: which cells follow from a file, what they are called, and every way in which a file can be wrong."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.sweep.cells import LONGEST_LABEL, Cell, cell_faults, expand
from experiments.sweep.file import Axis, SweepFile, as_tree, read_sweep
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.identity import address
from fedpfn.runs.keys import lookup

CONF = Path(__file__).parents[1] / "experiments" / "conf"


def sweep(folder: Path, text: str, *words: str) -> SweepFile:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return read_sweep(path, words, workdir=folder)


def cells(folder: Path, text: str, *words: str) -> list[Cell]:
    return expand(sweep(folder, text, *words))


def labels(folder: Path, text: str, *words: str) -> list[str]:
    return [cell.label for cell in cells(folder, text, *words)]


def values(found: list[Cell], *names: str) -> list[tuple[object, ...]]:
    return [tuple(lookup(cell.config, name) for name in names) for cell in found]


def faults(folder: Path, text: str, *words: str) -> list[str]:
    """Return the faults, with the file's own path left out of them."""
    with pytest.raises(ConfigError) as caught:
        cells(folder, text, *words)
    return [fault.replace(f"{folder}/", "") for fault in caught.value.faults]


# the grid


QUICK = """
base: {rounds: 30, train: {lr: 0.1}}
grid: {partition.alpha: [0.1, 0.5, 1]}
seeds: 3
quick: {base: {rounds: 2}, grid: {partition.alpha: [0.1]}, seeds: 1}
"""


def test_the_short_form_replaces_sections_and_adds_to_the_base(tmp_path: Path) -> None:
    assert len(cells(tmp_path, QUICK)) == 9
    (cell,) = expand(read_sweep(tmp_path / "sweep.yaml", workdir=tmp_path, quick=True))
    assert values([cell], "rounds", "train.lr", "partition.alpha", "seed") == [(2, 0.1, 0.1, 0)]
    (cell,) = expand(read_sweep(tmp_path / "sweep.yaml", ["rounds=5"], workdir=tmp_path, quick=True))
    assert values([cell], "rounds") == [(5,)]


def test_a_file_without_a_short_form_says_so(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("seeds: 2")
    with pytest.raises(ConfigError, match="it has no section quick: leave out --quick"):
        read_sweep(tmp_path / "sweep.yaml", workdir=tmp_path, quick=True)


def test_the_grid_is_every_combination_its_first_key_slowest_and_seeds_side_by_side(tmp_path: Path) -> None:
    text = """
    grid:
      train.lr: [0.1, 0.2]
      rounds: [3, 1, 2]
    seeds: [7, 5]
    """
    assert values(cells(tmp_path, text), "train.lr", "rounds", "seed") == [
        (0.1, 3, 7), (0.1, 3, 5), (0.1, 1, 7), (0.1, 1, 5), (0.1, 2, 7), (0.1, 2, 5),
        (0.2, 3, 7), (0.2, 3, 5), (0.2, 1, 7), (0.2, 1, 5), (0.2, 2, 7), (0.2, 2, 5),
    ]  # fmt: skip


def test_a_cell_is_its_config_with_its_address(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "{base: {rounds: 3}, grid: {mask: {ratio: [0.2]}}, seeds: [4]}")
    assert cell.config == RunConfig.parse({"rounds": 3, "mask.ratio": 0.2, "seed": 4})
    assert cell.address == address(cell.config)


def test_dotted_nested_kebab_and_snake_make_one_grid(tmp_path: Path) -> None:
    spellings = [
        "grid: {train.batch-size: [8, 16], mask.ratio: [0.2, 0.4]}",
        "grid: {train.batch_size: [8, 16], mask: {ratio: [0.2, 0.4]}}",
        "grid: {train: {batch-size: [8, 16]}, mask: {ratio: [0.2, 0.4]}}",
        "grid: {train: {batch_size: [8, 16]}, mask.ratio: [2e-1, 4e-1]}",
    ]
    first, *others = [cells(tmp_path, spelling) for spelling in spellings]
    assert len(first) == 4
    assert all(other == first for other in others)


def test_the_order_of_keys_moves_cells_and_not_their_addresses(tmp_path: Path) -> None:
    one = cells(tmp_path, "grid: {rounds: [1, 2], mask.ratio: [0.2, 0.4]}")
    two = cells(tmp_path, "grid: {mask.ratio: [0.2, 0.4], rounds: [1, 2]}")
    assert [cell.address for cell in one] != [cell.address for cell in two]
    assert {cell.address for cell in one} == {cell.address for cell in two}


def test_keys_that_move_together_are_one_axis_of_rows(tmp_path: Path) -> None:
    text = """
    grid:
      "model.name, train.lr": [[mlp, 0.1], [cnn, 0.05]]
      rounds: [1, 2]
    """
    assert sweep(tmp_path, text).grid[0] == Axis(("model.name", "train.lr"), (("mlp", 0.1), ("cnn", 0.05)))
    assert values(cells(tmp_path, text), "model.name", "train.lr", "rounds") == [
        ("mlp", 0.1, 1), ("mlp", 0.1, 2), ("cnn", 0.05, 1), ("cnn", 0.05, 2),
    ]  # fmt: skip


def test_whole_numbers_and_exponents_are_floats_where_the_key_is_one(tmp_path: Path) -> None:
    whole = cells(tmp_path, "grid: {partition.alpha: [100, 1e-3, 5E+2, .5]}")
    assert values(whole, "partition.alpha") == [(100.0,), (0.001,), (500.0,), (0.5,)]
    assert all(type(value) is float for (value,) in values(whole, "partition.alpha"))
    assert repr(sweep(tmp_path, "grid: {partition.alpha: [100]}").grid[0].rows) == "((100.0,),)"
    assert cells(tmp_path, "grid: {partition.alpha: [100]}") == cells(tmp_path, "grid: {partition.alpha: [100.0]}")


def test_arguments_of_a_users_model_are_keys_of_a_grid(tmp_path: Path) -> None:
    text = "{base: {model.name: my:net, model.args: {depth: 2}}, grid: {model.args.width: [16, 64]}, seeds: [0]}"
    assert values(cells(tmp_path, text), "model.args") == [("depth=2 width=16",), ("depth=2 width=64",)]
    assert labels(tmp_path, text) == ["width=16_seed=0", "width=64_seed=0"]
    left = cells(tmp_path, text[:-1] + ", exclude: [{model.args.width: 16}]}")
    assert values(left, "model.args") == [("depth=2 width=64",)]
    whole = '{base: {model.name: my:net}, grid: {model.args: ["width=16", "width=64 depth=2"]}, seeds: [0]}'
    assert labels(tmp_path, whole) == ["width=16_seed=0", "width=64_seed=0"]
    assert "model.args.width must be" in faults(tmp_path, "grid: {model.args.width: [[1], [2]]}")[0]


def test_a_sweep_of_version_1_has_the_cells_it_had(tmp_path: Path) -> None:
    old = cells(tmp_path, "grid: {strategy.server-optimizer: [none, adam], strategy.server-lr: [0.1, 0.3]}")
    new = cells(
        tmp_path,
        "{grid: {strategy.args.eta: [0.1, 0.3]}, base: {strategy.base: fedadam}, include: [{strategy.base: fedavg}]}",
    )
    assert len(old) == 3 and {cell.address for cell in old[1:]} == {cell.address for cell in new[:2]}
    assert [cell.label for cell in old][1:] == ["base=fedadam_eta=0.1_seed=0", "base=fedadam_eta=0.3_seed=0"]
    fault = faults(tmp_path, "grid: {strategy.server-optimizer: [sgd]}")[0]
    assert "strategy.server-optimizer must be one of none, avgm, adam, adagrad, yogi" in fault


def test_none_is_text_and_false_is_not(tmp_path: Path) -> None:
    text = "grid: {barrier.batch-norm: [none, reset], barrier.layers: [false, true]}"
    assert values(cells(tmp_path, text), "barrier.batch-norm", "barrier.layers") == [
        ("none", False), ("none", True), ("reset", False), ("reset", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["question: why?", "{grid: , include: , exclude: , base: }", "{grid: {}, include: []}"]
)
def test_a_file_without_a_grid_is_one_cell_a_seed(tmp_path: Path, text: str) -> None:
    (cell,) = cells(tmp_path, text)
    assert (cell.config, cell.label) == (RunConfig(), "seed=0")


# seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("seeds: [3, 1]", (3, 1)),
        ("seeds: 3", (0, 1, 2)),
        ("base: {seed: 5}", (5,)),
        ("{}", (0,)),
        ("seeds: [9223372036854775807]", (2**63 - 1,)),
    ],
)
def test_seeds_are_a_list_or_a_number_or_the_bases(tmp_path: Path, text: str, seeds: tuple[int, ...]) -> None:
    assert sweep(tmp_path, text).seeds == seeds
    assert [cell.config.seed for cell in cells(tmp_path, text)] == list(seeds)


def test_a_word_gives_the_seed_where_the_file_gives_none(tmp_path: Path) -> None:
    assert sweep(tmp_path, "base: {seed: 5}", "seed=6").seeds == (6,)


# combinations that are one experiment


def test_keys_that_an_algorithm_does_not_use_do_not_multiply_its_cells(tmp_path: Path) -> None:
    text = "grid: {mask.ratio: [0.2, 0.4, 0.6], strategy.name: [fedavg, fedpfn, fedpnu]}"
    assert labels(tmp_path, text) == [
        "fedavg_seed=0",
        "fedpfn_ratio=0.2_seed=0",
        "fedpnu_ratio=0.2_seed=0",
        "fedpfn_ratio=0.4_seed=0",
        "fedpnu_ratio=0.4_seed=0",
        "fedpfn_ratio=0.6_seed=0",
        "fedpnu_ratio=0.6_seed=0",
    ]
    assert cells(tmp_path, text)[0].config.mask.ratio == 0.2, "the first combination stands for the others"


def test_addresses_are_distinct(tmp_path: Path) -> None:
    text = """
    grid: {strategy.name: [fedavg, fedpfn, fedpnu], strategy.variant: [within-round, then-all], mask.ratio: [0.2, 0.4]}
    seeds: 2
    """
    found = [cell.address for cell in cells(tmp_path, text)]
    # FedAvg uses neither key, FedPFN one of them, FedPNU both
    assert len(set(found)) == len(found) == (1 + 2 + 4) * 2


# include


def test_include_adds_small_grids_on_top_of_the_base(tmp_path: Path) -> None:
    text = """
    base: {mask.ratio: 0.3}
    grid: {rounds: [1, 2]}
    include:
      - {strategy.name: fedavg, train: {proximal-mu: [0.001, 0.01]}}
      - {mask.ratio: 0.5}
      - {"rounds, mask.ratio": [[8, 0.8], [9, 0.9]]}
    """
    assert values(cells(tmp_path, text), "strategy.name", "rounds", "mask.ratio", "train.proximal-mu") == [
        ("fedpfn", 1, 0.3, 0.0),
        ("fedpfn", 2, 0.3, 0.0),
        ("fedavg", 20, 0.3, 0.001),
        ("fedavg", 20, 0.3, 0.01),
        ("fedpfn", 20, 0.5, 0.0),
        ("fedpfn", 8, 0.8, 0.0),
        ("fedpfn", 9, 0.9, 0.0),
    ]


def test_include_alone_does_not_make_the_base_a_cell(tmp_path: Path) -> None:
    assert values(cells(tmp_path, "include: [{rounds: 3}, {rounds: 4}]"), "rounds") == [(3,), (4,)]
    assert values(cells(tmp_path, "include: [{}, {rounds: 4}]"), "rounds") == [(20,), (4,)]


def test_an_included_cell_that_the_grid_has_stays_where_it_was(tmp_path: Path) -> None:
    alone = cells(tmp_path, "grid: {rounds: [1, 2]}")
    assert cells(tmp_path, "{grid: {rounds: [1, 2]}, include: [{rounds: 2}, {rounds: [1, 2]}]}") == alone


# exclude

ALGORITHMS = "grid: {strategy.name: [fedavg, fedpfn], mask.ratio: [0.2, 0.6]}\n"


def test_exclude_leaves_out_what_matches_all_keys_of_an_entry(tmp_path: Path) -> None:
    text = ALGORITHMS + "exclude: [{strategy.name: fedpfn, mask.ratio: 0.6}]"
    assert labels(tmp_path, text) == ["fedavg_seed=0", "fedpfn_seed=0"]
    text = ALGORITHMS + "exclude: [{strategy.name: fedavg}]"
    assert labels(tmp_path, text) == ["ratio=0.2_seed=0", "ratio=0.6_seed=0"]


def test_a_list_in_exclude_matches_any_of_its_values(tmp_path: Path) -> None:
    text = "{grid: {rounds: [1, 2, 3, 4]}, exclude: [{rounds: [1, 3, 9]}]}"
    assert values(cells(tmp_path, text), "rounds") == [(2,), (4,)]
    text = '{grid: {rounds: [1, 2], train.epochs: [1, 2]}, exclude: [{"rounds, train.epochs": [[1, 2], [2, 1]]}]}'
    assert values(cells(tmp_path, text), "rounds", "train.epochs") == [(1, 1), (2, 2)]


def test_whole_epochs_name_the_same_cell_however_they_are_written(tmp_path: Path) -> None:
    first, second = (cells(tmp_path, f"grid: {{train.epochs: [{one}, 0.5]}}") for one in ("1", "1.0"))
    assert [(cell.address, cell.label) for cell in first] == [(cell.address, cell.label) for cell in second]
    assert first[0].label == "epochs=1_seed=0" and first[0].address != first[1].address


def test_a_cell_stays_while_one_of_the_combinations_it_stands_for_does(tmp_path: Path) -> None:
    for ratio in (0.2, 0.6):
        entry = f"{{strategy.name: fedavg, mask.ratio: {ratio}}}"
        assert labels(tmp_path, ALGORITHMS + f"exclude: [{entry}]")[0] == "fedavg_seed=0"
    both = ALGORITHMS + "exclude: [{strategy.name: fedavg, mask.ratio: [0.2, 0.6]}]"
    assert labels(tmp_path, both) == ["ratio=0.2_seed=0", "ratio=0.6_seed=0"]


def test_exclude_matches_a_value_of_the_base_only_where_it_is_used(tmp_path: Path) -> None:
    text = "{base: {mask.ratio: 0.6}, grid: {strategy.name: [fedavg, fedpfn]}, exclude: [{mask.ratio: 0.6}]}"
    assert values(cells(tmp_path, text), "strategy.name") == [("fedavg",)]
    text = "{grid: {strategy.name: [fedavg, fedpfn]}, exclude: [{mask.ratio: 0.4}]}"
    assert values(cells(tmp_path, text), "strategy.name") == [("fedavg",)]


def test_exclude_reaches_included_cells_and_single_seeds(tmp_path: Path) -> None:
    text = """
    grid: {rounds: [1, 2]}
    include: [{rounds: 3}]
    exclude: [{rounds: 3, seed: 1}, {rounds: 1, seed: 0}]
    seeds: 2
    """
    assert values(cells(tmp_path, text), "rounds", "seed") == [(1, 1), (2, 0), (2, 1), (3, 0)]


def test_a_combination_that_could_not_run_may_be_left_out(tmp_path: Path) -> None:
    grid = "grid: {train.optimizer: [sgd, adam], train.nesterov: [false, true]}\n"
    (fault,) = faults(tmp_path, grid)
    assert fault.startswith("train.nesterov needs train.optimizer=sgd")
    assert len(cells(tmp_path, grid + "exclude: [{train.optimizer: adam, train.nesterov: true}]")) == 3
    by_base_and_default = "{train.optimizer: adam, train.nesterov: true, rounds: 7, train.epochs: 1}"
    assert len(cells(tmp_path, f"{grid}base: {{rounds: 7}}\nexclude: [{by_base_and_default}]")) == 3


# base, config, words


def test_later_layers_win_config_then_base_then_words(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("{seed: 3, rounds: 5, mask: {ratio: 0.5}, train.lr: 0.5}")
    text = "{config: other.yaml, base: {mask.ratio: 0.6, train: {lr: 0.6}}}"
    (cell,) = cells(tmp_path, text, "train.lr=7e-1")
    assert values([cell], "seed", "rounds", "mask.ratio", "train.lr") == [(3, 5, 0.6, 0.7)]


def test_a_config_lies_beside_the_file_and_gives_up_its_folder_and_its_seed(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps"
    folder.mkdir()
    own = RunConfig.parse({"seed": 9, "output.dir": "/a/run", "output.resume": True, "output.checkpoint-every": 2})
    lines = "\n".join(f"{name}: {value!r}" for name, value in own.flat().items())
    (tmp_path / "config.yaml").write_text(lines + "\nenvironment: {python: 3}")
    (folder / "sweep.yaml").write_text("{config: ../config.yaml, seeds: [0, 1]}")
    found = expand(read_sweep(folder / "sweep.yaml", workdir=tmp_path / "else" / "where"))
    assert [cell.config for cell in found] == [
        RunConfig.parse({"seed": seed, "output.checkpoint-every": 2}) for seed in (0, 1)
    ]


def test_data_roots_start_at_the_working_folder_wherever_they_are_given(tmp_path: Path) -> None:
    text = """
    base: {data.name: image-folder, data.root: a}
    grid: {rounds: [1, 2]}
    include: [{data.root: [b, /c]}]
    exclude: [{data.root: ./a, rounds: 2}]
    """
    roots = [(f"{tmp_path}/a",), (f"{tmp_path}/b",), ("/c",)]
    assert values(cells(tmp_path, text), "data.root") == roots
    assert values(cells(tmp_path, "{}", "data.root=../d"), "data.root") == [(f"{tmp_path.parent}/d",)]
    assert values(cells(tmp_path, "{}", "data.root="), "data.root") == [("",)]


def test_parts_of_ones_own_are_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep_nets.py").write_text("def net(): ...")
    (cell,) = cells(tmp_path, "grid: {model.name: ['sweep_nets:net']}")
    assert cell.config.model.name == "sweep_nets:net"


def test_a_question_is_text_for_readers(tmp_path: Path) -> None:
    assert sweep(tmp_path, "question: Why so?").question == "Why so?"
    assert sweep(tmp_path, "{}").question == ""


def test_a_sweep_written_out_is_the_same_sweep(tmp_path: Path) -> None:
    text = """
    question: Why?
    config: other.yaml
    base: {mask.ratio: 0.3, data.root: here}
    grid: {rounds: [1, 2], "model.name, train.lr": [[mlp, 1e-5], [cnn, 1]], partition.alpha: [100]}
    include: [{}, {strategy.name: fedavg, train.proximal-mu: [0.1, 1]}]
    exclude: [{rounds: 1, model.name: cnn}]
    """
    (tmp_path / "other.yaml").write_text("{seed: 3, train.threads: 2}")
    for ending in ("", "seeds: [5, 1]"):
        first = sweep(tmp_path, text + ending, "train.momentum=0.5")
        again = sweep(tmp_path, OmegaConf.to_yaml(OmegaConf.create(as_tree(first))))
        assert expand(again) == expand(first)
        assert (again.question, again.seeds) == ("Why?", (5, 1) if ending else (3,))


# labels


def test_a_label_holds_what_varies_among_the_cells_and_is_used(tmp_path: Path) -> None:
    text = """
    base: {rounds: 3}
    grid: {partition.alpha: [0.05, 100], strategy.name: [fedavg, fedpfn], mask.ratio: [0.2, 0.4], train.lr: [0.1]}
    seeds: [12]
    """
    assert labels(tmp_path, text) == [
        "fedavg_alpha=0.05_seed=12",
        "fedpfn_alpha=0.05_ratio=0.2_seed=12",
        "fedpfn_alpha=0.05_ratio=0.4_seed=12",
        "fedavg_alpha=100_seed=12",
        "fedpfn_alpha=100_ratio=0.2_seed=12",
        "fedpfn_alpha=100_ratio=0.4_seed=12",
    ]


def test_a_label_tells_of_a_base_that_only_included_cells_leave(tmp_path: Path) -> None:
    text = "{grid: {rounds: [1, 2]}, include: [{train.proximal-mu: 0.1, rounds: 1}]}"
    assert labels(tmp_path, text) == [
        "rounds=1_proximal-mu=0_seed=0",
        "rounds=2_proximal-mu=0_seed=0",
        "rounds=1_proximal-mu=0.1_seed=0",
    ]


@pytest.mark.parametrize(
    ("axis", "shown"),
    [
        ("data.root: [/a b/ü, /b]", "root=-a-b--_seed=0"),
        ("mask.schedule: ['os.path:join', fixed]", "schedule=os.path-join_seed=0"),
        ("mask.include: ['*.weight,conv?', '*']", "include=-.weight-conv-_seed=0"),
        ("train.weight-decay: [1.0e+20, 1.0e-20]", "weight-decay=1e+20_seed=0"),
        ("train.nesterov: [true, false]", "nesterov=true_seed=0"),
    ],
)
def test_a_label_may_stand_in_a_path(tmp_path: Path, axis: str, shown: str) -> None:
    text = f"{{base: {{data.name: image-folder}}, grid: {{{axis}}}}}"
    assert labels(tmp_path, text)[0] == shown


def test_a_label_is_cut_before_its_seed(tmp_path: Path) -> None:
    text = f"{{grid: {{mask.exclude: [{'x' * 200}, {'x' * 200}y]}}, seeds: [9223372036854775807, 3]}}"
    found = labels(tmp_path, text)
    assert [len(label) for label in found] == [LONGEST_LABEL] * 4
    assert found[0] == found[2] and found[0].endswith("x_seed=9223372036854775807") and found[1].endswith("xx_seed=3")


# what is wrong with a file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grd: {a: 1}", "sweep.yaml: unknown key 'grd'; did you mean 'grid'?"),
        (
            "zzz: 1",
            "sweep.yaml: unknown key 'zzz'; "
            "an experiment has title, source, question, kind, config, base, cases, grid, include, exclude, seeds, "
            "quick, measures, published, figures",
        ),
        ("rounds: 3", "sweep.yaml: unknown key 'rounds'; settings go under base"),
        ("train.lr: 3", "sweep.yaml: unknown key 'train.lr'; settings go under base"),
        ("seed: 3", "sweep.yaml: unknown key 'seed'; did you mean 'seeds'?"),
        ("question: [1]", "sweep.yaml: question must be text, got [1]"),
        ("config: {a: 1}", "sweep.yaml: config must be the path of a YAML of settings, got {'a': 1}"),
        ("base: [1]", "sweep.yaml: base must be a table of settings, got [1]"),
        ("grid: 3", "sweep.yaml: grid must be a table of keys, each with a list of values, got 3"),
        ("include: {rounds: 3}", "sweep.yaml: include must be a list of tables, got {'rounds': 3}"),
        ("exclude: x", "sweep.yaml: exclude must be a list of tables, got 'x'"),
        ("include: [3]", "include 1: must be a table of keys, got 3"),
        ("exclude: [{rounds: 20, seed: 5}, x]", "exclude 2: must be a table of keys, got 'x'"),
        ("exclude: [{}]", "exclude 1: names no key: it would exclude everything"),
        ("seeds: 0", "seeds: must be a list of one or more seeds, or their number, got 0"),
        ("seeds: []", "seeds: must be a list of one or more seeds, or their number, got []"),
        ("seeds: true", "seeds: must be a list of one or more seeds, or their number, got True"),
        ("seeds: {a: 1}", "seeds: must be a list of one or more seeds, or their number, got {'a': 1}"),
        ("seeds: [1, 2, 1]", "seeds: 1 is given twice"),
        ("seeds: [1.0]", "seeds: seed must be a whole number, got 1.0 (float)"),
        ("seeds: [-1]", "seeds: seed must be at least 0, got -1"),
        ("seeds: [9223372036854775808]", "seeds: seed must be below 2**63, the limit of what Flower can send, "
         "got 9223372036854775808"),
        ("{base: {seed: 3}, seeds: [3]}", "seed has no effect where seeds are given"),
        ("quick: {base: {rondes: 3}}", "quick: base: unknown key 'rondes'; did you mean 'rounds'?"),
        ("quick: {grd: {}}", "quick: unknown key 'grd'; did you mean 'grid'?"),
        ("quick: {quick: {seeds: 1}}", "quick: it has no short form of its own"),
        ("base: {rondes: 3}", "base: unknown key 'rondes'; did you mean 'rounds'?"),
        ("base: {rounds: x}", "base: rounds must be a whole number, got 'x' (str)"),
        ("base: {rounds: [3]}", "base: rounds must be a whole number, got [3] (list)"),
        ("base: {mask.ratio: 2}", "base: mask.ratio must be at most 1, got 2"),
        ("base: {mask.ratio: 0.1, mask: {ratio: 0.2}}", "base: mask.ratio is given twice"),
        ("base: {output: {dir: runs}}", "base: output.dir cannot be set: the sweep gives every cell its own folder, "
         "and continues what is there"),
        ("base: {output.resume: true}", "base: output.resume cannot be set: the sweep gives every cell its own folder, "
         "and continues what is there"),
        ("grid: {mask.rato: [1]}", "grid: unknown key 'mask.rato'; did you mean 'mask.ratio'?"),
        ("grid: {alpha: [1]}", "grid: unknown key 'alpha'; did you mean 'partition.alpha'?"),
        ("grid: {mask.ratio: 0.4}", "grid: mask.ratio must be a list of one or more values, got 0.4"),
        ("grid: {mask.ratio: }", "grid: mask.ratio must be a list of one or more values, got None"),
        ("grid: {mask.ratio: []}", "grid: mask.ratio must be a list of one or more values, got []"),
        ("grid: {mask.ratio: [[0.1, 0.2]]}", "grid: mask.ratio must be a number, got [0.1, 0.2] (list)"),
        ("grid: {mask.ratio: [0.1, 1.5]}", "grid: mask.ratio must be at most 1, got 1.5"),
        ("grid: {mask.ratio: [.nan]}", "grid: mask.ratio must be at least 0, got nan"),
        ("grid: {mask.granularity: [weigth]}", "grid: mask.granularity must be one of weight, neuron, got 'weigth'; "
         "did you mean 'weight'?"),
        ("grid: {model.norm: [null]}", "grid: model.norm must be text, got None (NoneType)"),
        ("grid: {train.nesterov: [1]}", "grid: train.nesterov must be true or false, got 1 (int)"),
        ("grid: {mask.ratio: [0.1, 0.1]}", "grid: mask.ratio has 0.1 twice"),
        ("grid: {partition.alpha: [100, 100.0]}", "grid: partition.alpha has 100.0 twice"),
        ("grid: {mask.ratio: [0.1], mask: {ratio: [0.2]}}", "grid: mask.ratio is given twice"),
        ("grid: {train.batch-size: [1], train.batch_size: [2]}", "grid: train.batch-size is given twice"),
        ("grid: {seed: [1, 2]}", "grid: seed is swept by seeds, not here"),
        ("include: [{seed: 1}]", "include 1: seed is swept by seeds, not here"),
        ("grid: {output.dir: [a]}", "grid: output.dir cannot be set: the sweep gives every cell its own folder, "
         "and continues what is there"),
        ("grid: {output.checkpoint-every: [0, 1]}",
         "grid: output.checkpoint-every does not change a result: set it in base"),
        ("grid: {'rounds, train.lr': [[1, 0.1], [2]]}",
         "grid: rounds, train.lr must be a list of rows of 2 values, got [2] among them"),
        ("grid: {'rounds, train.lr': [[1, 0.1, 5]]}",
         "grid: rounds, train.lr must be a list of rows of 2 values, got [1, 0.1, 5] among them"),
        ("grid: {'rounds, train.lr': [1, 0.1]}",
         "grid: rounds, train.lr must be a list of rows of 2 values, got 1 among them"),
        ("include: [{'rounds, train.lr': 5}]",
         "include 1: rounds, train.lr must be a list of one or more values, got 5"),
        ("grid: {'rounds, train.lrr': [[1, 0.1]]}", "grid: unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("grid: {'rounds, rounds': [[1, 1]]}", "grid: rounds is given twice"),
        ("grid: {'rounds, train.lr': [[1, 0.1]], rounds: [1]}", "grid: rounds is given twice"),
        ("grid: {'rounds, train.lr': [[1, 1], [1, 1.0]]}", "grid: rounds, train.lr has 1, 1.0 twice"),
        ("include: [{rounds: 3}, {rounds: x}]", "include 2: rounds must be a whole number, got 'x' (str)"),
        ("exclude: [{rondes: 3}]", "exclude 1: unknown key 'rondes'; did you mean 'rounds'?"),
        ("exclude: [{rounds: [x]}]", "exclude 1: rounds must be a whole number, got 'x' (str)"),
        ("exclude: [{rounds: []}]", "exclude 1: rounds must be a list of one or more values, got []"),
        ("exclude: [{train: {lr: 0.1}, train.lr: 0.1}]", "exclude 1: train.lr is given twice"),
        ("exclude: [{rounds: 3}]", "exclude 1 matches no cell"),
        ("{grid: {rounds: [1, 2]}, exclude: [{rounds: 1}, {rounds: 2, mask.ratio: 0.7}]}", "exclude 2 matches no cell"),
        ("{grid: {rounds: [1, 2]}, exclude: [{rounds: [1, 2]}]}", "exclude leaves no cell"),
        ("base: {train.optimizer: adam, train.nesterov: true}",
         "train.nesterov needs train.optimizer=sgd and train.momentum above 0"),
        ("config: none.yaml", "sweep.yaml: config: none.yaml cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    assert faults(tmp_path, text) == [told]


def test_files_that_cannot_be_read_are_told_in_a_line(tmp_path: Path) -> None:
    for text, told in (
        ("[1, 2]", "holds no table"),
        ("{a: ", "cannot be read"),
        ("{a: 1, a: 2}", "'a' is given twice"),
    ):
        (fault,) = faults(tmp_path, text)
        assert fault.startswith("sweep.yaml ") and told in fault and "\n" not in fault
    with pytest.raises(ConfigError, match=r"no experiment .*nowhere\.yaml; `fedpfn reproduce --list` names those"):
        read_sweep(tmp_path / "nowhere.yaml", workdir=tmp_path)


def test_a_fault_of_another_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("{rondes: 3, mask: {ratio: 3}}")
    assert faults(tmp_path, "config: other.yaml") == [
        "other.yaml: unknown key 'rondes'; did you mean 'rounds'?",
        "other.yaml: mask.ratio must be at most 1, got 3",
    ]


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    text = """
    grd: 1
    base: {rounds: x}
    grid: {mask.rato: [1], train.lr: [], mask.ratio: [0.2, 2]}
    include: [3, {train.epochs: 0}]
    exclude: [{}]
    seeds: [a]
    """
    found = faults(tmp_path, text, "foo", "rounds=x", "mask.ratio=0.1", "bar")
    assert [re.split(": | is| must", fault)[0] for fault in found] == [
        "sweep.yaml", "base", "'foo'", "'bar'", "rounds", "grid", "grid", "grid",
        "include 1", "include 2", "exclude 1", "seeds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word", "told"),
    [
        ("grid: {'mask.ratio, train.lr': [[0.2, 0.1]]}", "mask.ratio=0.4",
         "mask.ratio is set by the grid, which key=value words do not override"),
        ("include: [{}, {rounds: 2}]", "rounds=4", "rounds is set by include 2, which key=value words do not override"),
        ("seeds: [0, 1]", "seed=3", "seed has no effect where seeds are given"),
        ("{}", "mask.rato=0.4", "unknown key 'mask.rato'; did you mean 'mask.ratio'?"),
        ("{}", "rounds=x", "rounds must be a whole number, got 'x' (str)"),
        ("{}", "rounds", "'rounds' is not key=value"),
        ("{}", "output.dir=a", "output.dir cannot be set: the sweep gives every cell its own folder, "
         "and continues what is there"),
    ],
)  # fmt: skip
def test_a_word_that_would_be_lost_is_a_fault(tmp_path: Path, text: str, word: str, told: str) -> None:
    assert faults(tmp_path, text, word) == [told]


# faults of whole cells


def test_a_fault_of_many_cells_is_told_once_with_where_it_is(tmp_path: Path) -> None:
    clash = "train.nesterov needs train.optimizer=sgd and train.momentum above 0"
    text = "grid: {strategy.name: [fedavg, fedpfn], train.momentum: [0.0, 0.9], train.nesterov: [true]}\n"
    assert faults(tmp_path, text) == [
        f"{clash} (fedavg_momentum=0_nesterov=true_seed=0 and fedpfn_momentum=0_nesterov=true_seed=0)"
    ]
    assert faults(tmp_path, text + "seeds: 2") == [
        f"{clash} (4 of 8 cells, such as fedavg_momentum=0_nesterov=true_seed=0 and "
        "fedavg_momentum=0_nesterov=true_seed=1)"
    ]
    assert faults(tmp_path, text + "exclude: [{strategy.name: fedpfn}]") == [
        f"{clash} (fedavg_momentum=0_nesterov=true_seed=0)"
    ]
    assert faults(tmp_path, text + "exclude: [{train.momentum: 0.9}]") == [f"{clash} (all 2 cells)"]
    assert faults(tmp_path, "{base: {train.nesterov: true, train.momentum: 0.0}, seeds: 3}") == [
        f"{clash} (all 3 cells)"
    ]


def test_faults_of_cells_and_of_exclude_come_together(tmp_path: Path) -> None:
    text = "{base: {barrier.points: 4}, grid: {mask.warmup-rounds: [0, 20]}, exclude: [{rounds: 3}]}"
    assert faults(tmp_path, text) == [
        "exclude 1 matches no cell",
        "barrier.points must be odd, so that the midpoint is measured, got 4 (all 2 cells)",
        "mask.warmup-rounds (20) leaves none of the 20 rounds to mask (warmup-rounds=20_seed=0)",
    ]


def test_a_model_that_does_not_load_is_a_fault_of_its_cells(tmp_path: Path) -> None:
    (fault,) = cell_faults(cells(tmp_path, "grid: {model.name: [mlp, 'no_such_module:net']}"))
    assert fault.startswith("no module named 'no_such_module' for 'no_such_module:net'")
    assert fault.endswith("(model=no_such_module-net_seed=0)")


def test_what_would_keep_cells_from_running_here_is_told_once(tmp_path: Path) -> None:
    assert cell_faults(cells(tmp_path, "grid: {strategy.name: [fedavg, fedpfn]}")) == []
    assert cell_faults([]) == []
    text = f"{{base: {{data.root: {tmp_path}}}, grid: {{data.name: [digits, mnist], rounds: [1, 2]}}, seeds: 2}}"
    (fault,) = cell_faults(cells(tmp_path, text))
    assert str(tmp_path) in fault
    assert fault.endswith(" (4 of 8 cells, such as data=mnist_rounds=1_seed=0 and data=mnist_rounds=1_seed=1)")
    found = cell_faults(cells(tmp_path, "{base: {data.name: mnist, model.name: mpl}, grid: {rounds: [1, 2]}}"))
    assert len(found) == 2 and all(fault.endswith(" (all 2 cells)") for fault in found)
    assert "data.root" in found[0] and "unknown model 'mpl'" in found[1]


# the files that come with the project


def test_the_sweep_over_alpha_and_masks_is_that_of_its_question() -> None:
    found = expand(read_sweep(CONF / "alpha_by_mask.yaml", workdir=CONF))
    # 4 alphas x 2 seeds x (FedAvg, and FedPFN and FedPNU under 3 ratios each)
    assert len(found) == 4 * 2 * (1 + 3 + 3)
    by_algorithm = [cell.config.strategy.name for cell in found]
    assert [by_algorithm.count(name) for name in ("fedavg", "fedpfn", "fedpnu")] == [8, 24, 24]
    assert {cell.config.partition.alpha for cell in found} == {0.05, 0.1, 0.5, 100.0}
    assert {cell.config.data.name for cell in found} == {"mnist"}


def test_the_sweep_on_digits_can_run_as_it_is() -> None:
    found = expand(read_sweep(CONF / "sweeps" / "digits.yaml", workdir=CONF))
    assert len(found) == 12 and cell_faults(found) == []
