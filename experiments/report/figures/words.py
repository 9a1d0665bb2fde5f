"""What stands on the pictures: keys, algorithms, seeds and runs in words."""

from collections.abc import Collection, Mapping

from experiments.report.study import Value, short_name, show_value
from fedpfn.algorithms import TITLES
from fedpfn.runs import Run
from fedpfn.runs.identity import used_keys

ALGORITHM = "strategy.name"
ALPHA, RATIO = "partition.alpha", "mask.ratio"

_SYMBOLS = {ALPHA: "α", RATIO: "ρ"}
_AXES = {ALPHA: "Dirichlet α (smaller: more skewed)", RATIO: "mask ratio ρ (share of entries frozen)"}


def symbol(key: str) -> str:
    """Return a key as it stands before an equals sign: the papers' symbol where there is one."""
    return _SYMBOLS.get(key, short_name(key))


def axis_name(key: str) -> str:
    """Return a key as it stands beside an axis."""
    return _AXES.get(key, key)


def setting(key: str, value: Value) -> str:
    """Return a key with its value.

    >>> setting("partition.alpha", 0.05), setting("strategy.name", "fedpnu"), setting("mask.ratio", None)
    ('α = 0.05', 'FedPNU', 'no ρ')
    """
    if value is None:
        return f"no {symbol(key)}"
    if key == ALGORITHM:
        return TITLES.get(str(value), str(value))
    return f"{symbol(key)} = {show_value(value)}"


def settings(keys: Mapping[str, Value]) -> str:
    """Return the keys that are used with their values, the algorithm first."""
    order = sorted(keys, key=lambda key: key != ALGORITHM)
    return ", ".join(setting(key, keys[key]) for key in order if keys[key] is not None) or "all runs"


def counted(numbers: Collection[int], noun: str) -> str:
    """Return how many there are, as a range where the numbers differ.

    >>> counted([1], "seed"), counted([3, 2, 3], "seed")
    ('1 seed', '2–3 seeds')
    """
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low}–{high}'} {noun}{'s' * (high != 1)}"


def unused(key: str) -> str:
    """Return what stands in the place of a value where a key is not used."""
    return "no mask" if key == RATIO else f"no {symbol(key)}"


def title_of(run: Run, *, algorithm: bool = True) -> str:
    """Return what a run was, on one line: algorithm, data, model, clients, skew and seed."""
    config, used = run.config, used_keys(run.config)
    skew = setting(ALPHA, config.partition.alpha) if ALPHA in used else config.partition.scheme
    head = setting(ALGORITHM, config.strategy.name)
    if RATIO in used:
        head += f" ({setting(RATIO, config.mask.ratio)})"
    clients = counted([config.federation.clients], "client")
    trained = [head, config.data.name, config.model.name] if algorithm else [config.data.name]
    return " · ".join([*trained, clients, skew, f"seed {config.seed}"])
