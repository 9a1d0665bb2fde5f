"""The run config: defaults, what is refused and in which words, and that pyproject and the YAML files keep to it."""

import dataclasses
import importlib
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.pyproject_defaults import with_defaults
from experiments.sweep.cells import expand
from experiments.sweep.file import read_sweep
from fedpfn.args import args_text
from fedpfn.runs import read_config
from fedpfn.runs.config import ConfigError, RunConfig, parse_overrides
from fedpfn.runs.keys import KeySpec, flatten, key_specs, nest
from fedpfn.runs.parsing import HiddenValueError, hide
from fedpfn.runs.sections import Mask

ROOT = Path(__file__).parents[1]
SPECS = {spec.name: spec for spec in key_specs(RunConfig)}
OF_TYPE = {kind: [spec for spec in SPECS.values() if spec.type is kind] for kind in (bool, int, float, str)}
WRONG: dict[type, list[Any]] = {
    bool: [0, 1, 1.0, "true", None],
    int: [True, 3.0, "3", None],
    float: [True, "0.5", None],
    str: [1, 1.5, False, None],
}


def faults_of(*layers: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(*layers)
    return caught.value.faults


def by_name(spec: KeySpec) -> str:
    return spec.name


TEXT = st.characters(codec="ascii", exclude_characters="$?{}\\", categories=["L", "N", "P"])
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,4}", fullmatch=True)
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(TEXT, max_size=6)


def a_value(spec: KeySpec) -> st.SearchStrategy[Any]:
    """Values that the key takes on its own; clashes between keys are kept out by ``configs``."""
    if spec.choices:
        return st.sampled_from(spec.choices)
    if spec.type is bool:
        return st.booleans()
    if spec.holds_args:
        return st.dictionaries(NAMES, SCALARS, max_size=3).map(args_text)
    if spec.type is str:
        return st.text(TEXT, max_size=8)
    least, above = spec.limits.get("minimum"), spec.limits.get("above")
    most, below = spec.limits.get("maximum"), spec.limits.get("below")
    if spec.type is int:
        assert least is not None and above is None and below is None
        return st.integers(int(least), 2**62 if most is None else int(most))
    return st.floats(
        least if above is None else above,
        most if below is None else below,
        exclude_min=above is not None,
        exclude_max=below is not None,
        allow_nan=False,
        allow_infinity=False,
    )


CLASHING = {"train.nesterov", "barrier.points", "mask.warmup-rounds", "mask.ratio-shape", "mask.final-ratio"}


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """Drop the schedule that FedPNU across rounds, which is one itself, refuses."""
    across = values.get("strategy.variant") == "across-rounds"
    return {name: value for name, value in values.items() if not (across and name == "mask.schedule")}


configs = st.fixed_dictionaries(
    {}, optional={name: a_value(spec) for name, spec in SPECS.items() if name not in CLASHING}
).map(settled)


# defaults and the shape of the schema


def test_an_empty_config_is_the_defaults() -> None:
    assert RunConfig.parse() == RunConfig.parse({}) == RunConfig.parse({"train": {}}) == RunConfig()


def test_the_defaults_are_the_papers_where_it_states_them() -> None:
    config = RunConfig()
    assert (config.mask.ratio, config.mask.schedule, config.mask.granularity) == (0.4, "per-round", "weight")
    assert (config.barrier.points, config.barrier.every) == (25, 1)
    assert (config.strategy.phase_share, config.strategy.base) == (0.5, "fedavg")
    assert (config.seed, config.federation.fraction, config.train.weight_decay) == (0, 1.0, 0.0)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().train.lr = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("spec", SPECS.values(), ids=by_name)
def test_every_key_says_what_it_is_and_its_default_has_its_type(spec: KeySpec) -> None:
    assert type(spec.default) is (int if spec.fraction else spec.type)
    assert spec.about and "\n" not in spec.about
    assert spec.name == spec.name.lower() and "_" not in spec.name
    assert spec.default in (spec.choices or (spec.default,))


def test_a_key_of_the_schema_is_the_whole_list_flower_carries() -> None:
    assert list(RunConfig().flat()) == list(SPECS)
    assert RunConfig().flat()["partition.min-size"] == 0


# layers, nesting, spelling


def test_the_last_layer_wins_key_by_key() -> None:
    config = RunConfig.parse({"train": {"lr": 0.5, "epochs": 3}}, {"train.lr": 0.25})
    assert (config.train.lr, config.train.epochs) == (0.25, 3)


def test_dotted_nested_kebab_and_snake_are_one_key() -> None:
    spellings: list[dict[str, Any]] = [
        {"train.batch-size": 7},
        {"train.batch_size": 7},
        {"train": {"batch-size": 7}},
        {"train": {"batch_size": 7}},
    ]
    assert len({RunConfig.parse(spelling) for spelling in spellings}) == 1
    assert RunConfig.parse(spellings[0]).train.batch_size == 7


@settings(max_examples=20)
@given(configs)
def test_a_config_comes_back_from_its_flat_and_its_nested_form(values: dict[str, Any]) -> None:
    config = RunConfig.parse(values)
    flat = config.flat()
    assert all(flat[name] == value for name, value in values.items())
    assert all(type(flat[name]) is SPECS[name].type or SPECS[name].fraction for name in flat)
    assert RunConfig.parse(flat) == RunConfig.parse(config.nested()) == config


@given(configs)
def test_nesting_and_flattening_are_inverse(values: dict[str, Any]) -> None:
    assert dict(flatten(nest(values))) == values


# types


@pytest.mark.parametrize("spec", SPECS.values(), ids=by_name)
def test_a_value_of_another_type_is_refused_with_its_key(spec: KeySpec) -> None:
    for value in WRONG[spec.type]:
        (fault,) = faults_of({spec.name: value})
        assert fault.startswith(f"{spec.name} must be ")
        assert repr(value) in fault and type(value).__name__ in fault


# 0 or 1, whichever lies within the limits; two lie between them
WHOLE = [
    (spec, 0 if "below" in spec.limits else 1)
    for spec in OF_TYPE[float]
    if spec.name not in ("strategy.phase-share", "privacy.delta") and not spec.fraction
]


@pytest.mark.parametrize(("spec", "whole"), WHOLE, ids=[spec.name for spec, _ in WHOLE])
def test_a_whole_number_will_do_for_a_float_and_becomes_one(spec: KeySpec, whole: int) -> None:
    value = RunConfig.parse({spec.name: whole, "mask.ratio-shape": "linear"}).flat()[spec.name]
    assert value == whole and type(value) is float


@pytest.mark.parametrize("whole", [2, 2.0], ids=str)
def test_whole_epochs_are_kept_as_they_were_before_there_were_fractions(whole: float) -> None:
    config = RunConfig.parse({"train.epochs": whole})
    assert repr(config.flat()["train.epochs"]) == "2" and config == RunConfig.parse({"train.epochs": 2})
    assert RunConfig.parse({"train.epochs": 1.5}).flat()["train.epochs"] == 1.5
    assert repr(RunConfig().flat()["train.epochs"]) == "1"


# limits and choices


LIMITED = [(spec, bound, limit) for spec in SPECS.values() for bound, limit in spec.limits.items()]


@pytest.mark.parametrize(("spec", "bound", "limit"), LIMITED, ids=[f"{s.name}-{b}" for s, b, _ in LIMITED])
def test_the_limits_of_a_key_hold_at_their_edge(spec: KeySpec, bound: str, limit: float) -> None:
    inside: float
    outside: float
    if spec.type is int:
        inside, outside = {"minimum": (int(limit), int(limit) - 1), "maximum": (int(limit), int(limit) + 1)}[bound]
    else:
        down, up = math.nextafter(limit, -math.inf), math.nextafter(limit, math.inf)
        inside, outside = {
            "minimum": (limit, down), "above": (up, limit), "maximum": (limit, up), "below": (down, limit),
        }[bound]  # fmt: skip
    # what else has to be so for the edge to be reached
    beside = {"mask.ratio-shape": "linear"}
    assert RunConfig.parse(beside, {spec.name: inside}).flat()[spec.name] == inside
    (fault,) = faults_of(beside, {spec.name: outside})
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    assert fault.startswith(f"{spec.name} must be {words[bound]} {limit:g}, got ")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("spec", OF_TYPE[float], ids=by_name)
def test_no_key_takes_nan_or_infinity(spec: KeySpec, value: float) -> None:
    (fault,) = faults_of({spec.name: value})
    assert fault.startswith(f"{spec.name} must be ") and repr(value) in fault


@pytest.mark.parametrize("spec", [spec for spec in SPECS.values() if spec.choices], ids=by_name)
def test_a_choice_is_refused_with_the_list_and_the_near_one(spec: KeySpec) -> None:
    misspelt = spec.choices[0] + "x"
    (fault,) = faults_of({spec.name: misspelt})
    assert f"{spec.name} must be one of {', '.join(spec.choices)}" in fault
    assert f"did you mean {spec.choices[0]!r}?" in fault
    for choice in spec.choices:
        assert RunConfig.parse({spec.name: choice}).flat()[spec.name] == choice


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_final_ratio_needs_a_shape_that_gets_there(shape: str) -> None:
    moved = {"mask.final-ratio": 0.8}
    assert "mask.ratio-shape" in faults_of(moved)[0]
    assert RunConfig.parse(moved, {"mask.ratio-shape": shape}).mask.final_ratio == 0.8
    assert RunConfig.parse({"mask.ratio": 0.7}).mask == Mask(ratio=0.7)


def test_keys_that_do_not_go_together_are_faults() -> None:
    assert "nesterov" in faults_of({"train.nesterov": True, "train.optimizer": "adam"})[0]
    assert "nesterov" in faults_of({"train.nesterov": True, "train.momentum": 0.0})[0]
    assert RunConfig.parse({"train.nesterov": True}).train.nesterov
    assert "odd" in faults_of({"barrier.points": 24})[0]
    assert "warmup-rounds (20)" in faults_of({"mask.warmup-rounds": 20})[0]
    assert RunConfig.parse({"mask.warmup-rounds": 19}).mask.warmup_rounds == 19
    assert RunConfig.parse({"mask.warmup-rounds": 20, "strategy.name": "fedavg"}).rounds == 20


# unknown keys, and all faults at once


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train.batchsize", "train.batch-size"),
        ("federation.client", "federation.clients"),
        ("mask.rato", "mask.ratio"),
        ("alpha", "partition.alpha"),
        ("split.alpha", "partition.alpha"),
        ("lr", "train.lr"),
        ("warmup_rounds", "mask.warmup-rounds"),
    ],
)
def test_an_unknown_key_is_answered_with_the_near_one(typed: str, meant: str) -> None:
    (fault,) = faults_of({typed: 1})
    assert fault == f"unknown key {typed.replace('_', '-')!r}; did you mean {meant!r}?"


def test_a_key_like_none_is_answered_with_where_the_list_is() -> None:
    (fault,) = faults_of({"zzzzzz": 1})
    assert "'zzzzzz'" in fault and "fedpfn keys" in fault


def test_all_faults_come_at_once_a_line_each_and_none_twice() -> None:
    layer = {"seed": "3", "train": {"lr": -1.0, "speed": 2}, "mask.draw": "exactly"}
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(layer, layer)
    assert len(caught.value.faults) == 4
    head, *lines = str(caught.value).splitlines()
    assert head == "the config has 4 faults:"
    assert lines == [f"  - {fault}" for fault in caught.value.faults]
    for word in ("seed must be", "train.lr must be", "unknown key 'train.speed'", "mask.draw must be one of"):
        assert any(word in line for line in lines)


def test_all_clashes_between_keys_come_at_once() -> None:
    clashes = {"train.nesterov": True, "train.momentum": 0.0, "barrier.points": 4, "mask.final-ratio": 0.9, "rounds": 1}
    assert len(faults_of(clashes, {"mask.warmup-rounds": 1})) == 4


def test_clashes_come_together_with_faults_of_other_keys() -> None:
    found = faults_of({"train.lr": -1.0, "barrier.points": 4, "train.nesterov": True, "train.momentum": 0.0})
    assert len(found) == 3


@pytest.mark.parametrize(
    "layer",
    [
        # with the default of rounds, 20, or of the misspelt key, there would be a clash
        {"mask.warmup-rounds": 20, "rounds": "fifty"},
        {"mask.warmup-rounds": 20, "rouns": 50},
        {"mask.warmup-rounds": 20, "rounds": 0},
        {"mask.final-ratio": 0.8, "mask.ratio-shape": "linaer"},
        {"mask.final-ratio": 0.8, "mask.rtio-shape": "linear"},
        {"train.nesterov": True, "train.momentum": 1.5, "train.optimizer": "sgd"},
    ],
)
def test_a_default_in_place_of_a_faulty_value_makes_no_fault(layer: dict[str, Any]) -> None:
    assert len(faults_of(layer)) == 1


def test_what_can_be_read_in_spite_of_faults_is_read() -> None:
    reading = RunConfig.read({"rounds": "fifty", "train.lr": 0.5, "model.args.a!": 1, "model.args.b": 2, "sead": 3})
    assert (reading.config.rounds, reading.config.train.lr) == (RunConfig.rounds, 0.5)
    assert reading.unknown == {"rounds", "model.args", "seed"} and len(reading.faults) == 3
    hidden = hide(reading.config, reading.unknown)
    assert hidden.train.lr == 0.5 and hidden.model.name == "mlp"
    for read in (lambda: hidden.rounds, lambda: hidden.model.args, lambda: dataclasses.asdict(hidden.model)):
        with pytest.raises(HiddenValueError):
            read()


def test_a_fault_of_version_1_leaves_the_base_strategy_unknown() -> None:
    assert {"strategy.base", "strategy.args"} <= RunConfig.read({"strategy.server-lr": -1.0}).unknown


# as typed on a command line


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 0.001),
        ("train.lr=.5", "train.lr", 0.5),
        ("train.lr=1", "train.lr", 1.0),
        ("seed=12", "seed", 12),
        ("seed=-1", "seed", -1),
        ("train.nesterov=true", "train.nesterov", True),
        ("train.nesterov=False", "train.nesterov", False),
        ("data.name=mnist", "data.name", "mnist"),
        ("data.root=/a b/c=d", "data.root", "/a b/c=d"),
        ("data.root=12", "data.root", "12"),
        ("data.root=true", "data.root", "true"),
        ("data.root=", "data.root", ""),
        ("data.root='/a b'", "data.root", "/a b"),
        ('data.root="it\'s"', "data.root", "it's"),
        ("data.root='open", "data.root", "'open"),
        ("data.root='", "data.root", "'"),
        ("mask.include=*.weight,conv?.*", "mask.include", "*.weight,conv?.*"),
        ("mask.include=[a-c]*", "mask.include", "[a-c]*"),
        ("mask.include=*", "mask.include", "*"),
        ("mask.exclude='*.bias'", "mask.exclude", "*.bias"),
        ("mask.schedule=my.package:schedule", "mask.schedule", "my.package:schedule"),
        ("train.batch_size=7", "train.batch-size", 7),
        (" seed =4", "seed", 4),
        ("seed=010", "seed", 10),
    ],
)
def test_a_word_as_typed_becomes_a_value_of_its_keys_type(word: str, key: str, value: Any) -> None:
    values = parse_overrides([word])
    assert values == {key: value} and type(values[key]) is type(value)


@pytest.mark.parametrize(
    ("word", "got"),
    [
        ("seed=3.0", "3.0"),
        ("seed='3'", "'3'"),
        ("seed=three", "'three'"),
        ("seed=true", "'true'"),
        ("seed=", "''"),
        ("train.lr=abc", "'abc'"),
        ("train.lr=a: b", "'a: b'"),
        ("train.lr=[1, 2]", "[1, 2]"),
        ("train.lr=nan", "nan"),
        ("train.lr=1e400", "inf"),
        ("train.nesterov=1", "1"),
    ],
)
def test_a_word_of_the_wrong_type_is_named_by_the_check(word: str, got: str) -> None:
    (fault,) = faults_of(parse_overrides([word]))
    assert fault.startswith(word.partition("=")[0]) and got in fault


def test_words_that_are_no_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["rounds", "seed=1", "=3"])
    assert caught.value.faults == ("'rounds' is not key=value", "'=3' is not key=value")


def test_the_last_word_for_a_key_wins() -> None:
    assert parse_overrides(["seed=1", "seed=2"]) == {"seed": 2}


def test_an_unknown_key_passes_the_words_and_fails_the_check() -> None:
    assert "did you mean 'train.lr'?" in faults_of(parse_overrides(["train.lrr=0.1"]))[0]


@given(st.fixed_dictionaries({}, optional={spec.name: a_value(spec) for spec in SPECS.values() if spec.type is float}))
def test_a_float_written_by_python_is_read_back_to_the_bit(values: dict[str, float]) -> None:
    assert parse_overrides([f"{name}={value!r}" for name, value in values.items()]) == values


# the files that have to follow


def pyproject() -> dict[str, Any]:
    tables: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return tables


def typed(tree: dict[str, Any]) -> list[tuple[str, str, Any]]:
    return sorted((name, type(value).__name__, value) for name, value in flatten(tree))


def test_pyproject_holds_the_defaults_with_their_types() -> None:
    config = pyproject()["tool"]["flwr"]["app"]["config"]
    declared = nest({name: spec.default for name, spec in SPECS.items()})
    assert config == declared
    assert typed(config) == typed(declared)
    # what a default leaves to the algorithm
    assert RunConfig.parse(config) == RunConfig()


def test_the_defaults_in_pyproject_are_as_generated() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert with_defaults(text) == text
    # a key that went away and one that came are both put right
    assert with_defaults(text.replace("rounds = 20", "laps = 3")) == text


@pytest.mark.parametrize("component", ["serverapp", "clientapp"])
def test_the_two_components_of_the_app_exist(component: str) -> None:
    components = pyproject()["tool"]["flwr"]["app"]["components"]
    assert set(components) == {"serverapp", "clientapp"}
    module, _, name = components[component].partition(":")
    app = getattr(importlib.import_module(module), name)
    assert type(app).__name__.lower() == component
    # Flower reads the source: a plain assignment
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"\n{name} = " in source


def test_the_command_line_entry_point_exists() -> None:
    module, _, name = pyproject()["project"]["scripts"]["fedpfn"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


# those of the laboratory lie in paper/ and are tested with it
FILES = sorted(path for path in (ROOT / "experiments").rglob("*.y*ml") if path.parent.name != "paper")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_of_the_experiments_is_a_config_or_a_sweep(path: Path) -> None:
    tree = read_config(path)
    if "grid" in tree or "include" in tree:
        assert expand(read_sweep(path, workdir=ROOT))
    else:
        config = RunConfig.parse(tree)
        assert {name: config.flat()[name] for name, _ in flatten(tree)} == dict(flatten(tree))


def test_there_are_yaml_files_to_test() -> None:
    assert FILES


@pytest.mark.parametrize("value", ["???", "${x}", "a${", "${oc.env:HOME}"])
def test_text_that_omegaconf_would_read_more_into_is_refused(value: str) -> None:
    (fault,) = faults_of({"mask.include": value})
    assert fault.startswith("mask.include must be plain text")


def test_numbers_that_nothing_can_carry_are_refused() -> None:
    assert "train.lr must be a number" in faults_of({"train.lr": 10**400})[0]
    assert "seed must be below 2**63" in faults_of({"seed": 2**63})[0]


def test_a_right_name_in_a_wrong_table_is_sent_to_the_right_one() -> None:
    assert "did you mean 'partition.alpha'?" in faults_of({"model.alpha": 1})[0]
