"""Arguments of the user's own parts: their text, their check against a signature, and the call that passes them."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpfn.args import args_of, args_text
from fedpfn.parts import call_with, signature_faults
from fedpfn.runs.config import ConfigError, RunConfig, parse_overrides

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
VALUES = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_arguments_come_back_from_their_text_with_their_types(args: dict[str, Any]) -> None:
    read = args_of(args_text(args))
    assert read == args and {name: type(value) for name, value in read.items()} == {n: type(v) for n, v in args.items()}


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ("", {}),
        ("width=64 depth=3", {"depth": 3, "width": 64}),
        ("width=64,depth=3", {"depth": 3, "width": 64}),
        (" rate=1e-3 ,  flag=True, name=tanh ", {"flag": True, "name": "tanh", "rate": 0.001}),
        ("my-width=1", {"my_width": 1}),
        ("a='64' b=\"it's\"", {"a": "64", "b": "it's"}),
        ("empty= last=1", {"empty": "", "last": 1}),
    ],
)
def test_arguments_are_read_as_what_they_look_like(text: str, args: dict[str, Any]) -> None:
    assert args_of(text) == args


@pytest.mark.parametrize("text", ["width", "width 64", "=3", "a=1 a=2", "3a=1", "a='open", "a=b=c d"])
def test_other_texts_are_refused_with_their_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.args: "):
        RunConfig.parse({"model.args": text})


def test_keys_text_and_tables_are_one_spelling() -> None:
    tables: list[dict[str, Any]] = [
        {"model.args": "width=64 depth=3"},
        {"model": {"args": {"depth": 3, "width": 64}}},
        {"model.args.depth": 3, "model.args.width": 64},
        parse_overrides(["model.args.width=64", "model.args.depth=3"]),
        parse_overrides(["model.args='depth=3,width=64'"]),
    ]
    assert {RunConfig.parse(table).model.args for table in tables} == {"depth=3 width=64"}


def test_later_layers_add_arguments_and_a_text_replaces_them() -> None:
    first = {"model.args.width": 64, "model.args.depth": 3}
    assert RunConfig.parse(first, {"model.args.width": 16}).model.args == "depth=3 width=16"
    assert RunConfig.parse(first, {"model.args": "width=16"}).model.args == "width=16"
    config = RunConfig.parse(first)
    assert RunConfig.parse(config.nested(), {"model.args.width": 8}).model.args == "depth=3 width=8"


@pytest.mark.parametrize("value", [[1], None, float("nan"), "${x}"], ids=str)
def test_an_argument_is_a_plain_scalar(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"mask\.args\.period must be"):
        RunConfig.parse({"mask.args.period": value})


def net(input_shape: tuple[int, ...], *, width: int = 16, rate: float = 0.5, act: str | None = None, deep=2, **_: Any):
    return input_shape, width, rate, act, deep


class Net:
    def __init__(self, width: "int", flag: bool = False) -> None:
        self.width = width


def closed(width: int = 1, *, rest=None) -> int:
    return width


def faults(part: Any, positional: int = 0, **args: Any) -> list[str]:
    return signature_faults("my:net", part, args, ("input_shape",), key="model.args", positional=positional)


def test_arguments_that_fit_are_no_fault() -> None:
    assert faults(net, width=3, rate=1, act="tanh", deep=4, anything="else") == []
    assert faults(net, deep=0.5) == [], "a whole default without an annotation may be any number"
    assert faults(Net, width=3, flag=True) == []
    assert faults(functools.partial(Net, flag=True), width=3) == []
    assert faults(closed, rest=3) == faults(closed, rest="x") == []
    assert faults(torch.optim.RMSprop, 1, alpha=0.9, centered=True, eps=1) == []


@pytest.mark.parametrize(
    ("part", "args", "expected"),
    [
        (closed, {"widht": 3}, "model.args.widht: my:net takes no argument 'widht'; did you mean 'width'? (it takes "),
        (closed, {"zzz": 3}, "model.args.zzz: my:net takes no argument 'zzz' (it takes width, rest)"),
        (closed, {"width": 0.5}, "model.args.width must be a whole number, got 0.5 (float)"),
        (closed, {"width": True}, "model.args.width must be a whole number, got True (bool)"),
        (net, {"rate": "high"}, "model.args.rate must be a number, got 'high' (str)"),
        (net, {"deep": "very"}, "model.args.deep must be a number, got 'very' (str)"),
        (net, {"act": 3}, "model.args.act must be text, got 3 (int)"),
        (net, {"input_shape": 3}, "model.args.input-shape cannot be set: fedpfn itself passes input_shape to my:net"),
        (Net, {"width": "wide"}, "model.args.width must be a whole number"),
        (Net, {}, "my:net needs width, which has no default; set model.args.width"),
        (lambda a, b, /: None, {}, "my:net takes a by position only"),
    ],
)
def test_arguments_that_do_not_fit_are_named(part: Any, args: dict[str, Any], expected: str) -> None:
    assert faults(part, **args)[0].startswith(expected)


class Forwarding(Net):
    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Popping(Forwarding):
    def __init__(self, **kwargs: Any) -> None:
        self.rate = kwargs.pop("rate", 0.5)
        super().__init__(**kwargs)


class Open(torch.nn.Module):
    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()


def test_arguments_that_a_class_passes_on_are_checked_as_its_bases_have_them() -> None:
    for kind in (Forwarding, Popping):
        assert faults(kind, width=3, depth=2) == []
        assert faults(kind, width="wide")[0].startswith("model.args.width must be a whole number")
        # it may take any other name out of its kwargs, unless it is known not to
        assert faults(kind, rate=0.1) == [] == faults(kind, widht=3)
        (fault,) = signature_faults("my:net", kind, {"widht": 3}, key="model.args", forwards=True)
        assert "takes no argument 'widht'; did you mean 'width'? (it takes depth, width, flag)" in fault
    assert signature_faults("my:net", Open, {"width": 3, "x": 1}, key="model.args", forwards=True) == []


def test_parameters_passed_by_position_are_not_the_users() -> None:
    def scheme(labels: Any, clients: int, rng: Any, *, spread: float) -> None: ...

    assert faults(scheme, 3, spread=1.0) == []
    assert "cannot be set" in faults(scheme, 3, clients=4, spread=1.0)[0]


def test_the_call_passes_what_the_signature_takes_and_floats_for_whole_numbers() -> None:
    assert call_with(net, {"input_shape": (3,)}, {"rate": 1, "width": 2}) == ((3,), 2, 1.0, None, 2)
    assert isinstance(call_with(net, {"input_shape": (3,)}, {"rate": 1})[2], float)
    assert call_with(closed, {"input_shape": (3,), "num_classes": 2}, {}) == 1
    assert call_with(lambda first, *, n: (first, n), {}, {"n": 3}, "given") == ("given", 3)
