"""The run config: its sections (``sections``) as one object, read from layers, and all checks that need only values.

Keys are dotted and kebab-case outside (``partition.min-size`` in TOML, on the command line and on the wire), snake_case
inside. ``RunConfig.parse`` merges layers of keys and reports every fault in one ``ConfigError``. Whether the data exist
and the model can be built is checked when they are loaded and built.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedpfn.args import args_of, read_value
from fedpfn.runs.keys import (
    KeySpec,
    Scalar,
    args_key,
    flatten,
    key,
    key_specs,
    lookup,
    nest,
    spec_faults,
    unknown_key,
    unless,
)
from fedpfn.runs.legacy import OLD_KEYS, modernise
from fedpfn.runs.parsing import ConfigError as ConfigError
from fedpfn.runs.parsing import Reading, argument_fault, read_layers
from fedpfn.runs.sections import (
    BY_ALGORITHM,
    Barrier,
    Data,
    Evaluate,
    Federation,
    Mask,
    Model,
    Output,
    Partition,
    Privacy,
    Stop,
    Strategy,
    Train,
    Transport,
)

_MASKING = ("fedavg", "fedpfn", "fedpnu", "ssfl")


@dataclass(frozen=True)
class RunConfig:
    seed: int = key(0, "seed of every draw of the run, below 2**63", minimum=0)
    rounds: int = key(20, "communication rounds T", minimum=1)
    device: str = key("auto", "where clients train and the server evaluates", choices=("auto", "cpu", "cuda"))
    deterministic: bool = key(
        False,
        "on a GPU: use only deterministic algorithms; layers that have none are refused",
        since=2,
    )
    measures: str = key("", "additional measures of each round, comma-separated: package.module:measure", since=2)
    federation: Federation = field(default_factory=Federation)
    data: Data = field(default_factory=Data)
    partition: Partition = field(default_factory=Partition)
    model: Model = field(default_factory=Model)
    strategy: Strategy = field(default_factory=Strategy)
    mask: Mask = field(default_factory=Mask, metadata={"used": (unless("strategy.name", "fedavg"),)})
    train: Train = field(default_factory=Train)
    privacy: Privacy = field(default_factory=Privacy)
    transport: Transport = field(default_factory=Transport)
    evaluate: Evaluate = field(default_factory=Evaluate)
    stop: Stop = field(default_factory=Stop)
    barrier: Barrier = field(default_factory=Barrier)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Fill in the algorithm's default mask ratio."""
        if self.mask.ratio == BY_ALGORITHM:
            own = Mask.final_ratio if self.strategy.name in _MASKING else 0.0
            object.__setattr__(self, "mask", replace(self.mask, ratio=own))

    @classmethod
    def parse(cls, *layers: Mapping[str, Any]) -> "RunConfig":
        """Merge ``layers`` over the defaults, later ones winning, and check the result.

        A layer maps keys to scalars, nested or dotted, in kebab- or snake_case. Raises a ``ConfigError`` that names
        every unknown key (with the nearest known one), wrong type and impossible value. Arguments of parts
        (``model.args.width``) are merged over the layers; the text ``model.args`` replaces those of earlier layers.
        Keys of version 1 are translated.
        """
        reading = cls.read(*layers)
        if reading.faults:
            raise ConfigError(reading.faults)
        return reading.config

    @classmethod
    def read(
        cls, *layers: Mapping[str, Any], faults: Iterable[str] = (), unknown: Iterable[str] = ()
    ) -> "Reading[RunConfig]":
        """Merge as ``parse`` does, and return the result despite faults, so that callers can check for more."""
        flat_layers, old_faults = modernise(layers)
        if old_faults:
            unknown = {*unknown, "strategy.base", "strategy.args"}
        return read_layers(cls, flat_layers, _CHECKS, faults=[*faults, *old_faults], unknown=unknown)

    def flat(self) -> dict[str, Scalar]:
        """Return every key, dotted and kebab-case, with its value, as sent through Flower."""
        return flat(self)

    def nested(self) -> dict[str, Any]:
        """Return the nested kebab-case tables of a TOML or YAML file."""
        return nest(self.flat())


KEYS: dict[str, KeySpec] = {spec.name: spec for spec in key_specs(RunConfig)}


def is_key(name: str) -> bool:
    """Whether a run has a key of that name: one of the schema or of version 1, or an argument of a part."""
    return name in KEYS or name in OLD_KEYS or args_key(name, KEYS) is not None


def key_faults(name: str, value: Any) -> list[str]:
    """Return what is wrong with a key of a run and its value, judged by these two alone."""
    if args_key(name, KEYS) is not None:
        fault = argument_fault(name, value)
        return [fault] if fault else []
    spec = KEYS.get(name) or OLD_KEYS.get(name)
    return [unknown_key(name, KEYS)] if spec is None else spec_faults(spec, value)


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of keys in the order of the schema; arguments of a part take the position of its ``args``."""
    places = {name: place for place, name in enumerate(KEYS)}
    return sorted(set(names), key=lambda name: (places.get(args_key(name, KEYS) or name, len(places)), name))


def flat(config: Any) -> dict[str, Scalar]:
    """Return every key of a parsed config, dotted and kebab-case, with its value."""
    return {spec.name: lookup(config, spec.name) for spec in key_specs(type(config))}


def settings_of(section: Any) -> dict[str, Any]:
    """Return the keys of a section such as ``config.model`` as keyword arguments, its ``args`` as a table.

    >>> settings_of(RunConfig.parse({"data.args.size": 3}).data)["args"]
    {'size': 3}
    """
    settings = asdict(section)
    return settings | {"args": args_of(settings["args"])} if "args" in settings else settings


def parse_overrides(words: Iterable[str], schema: type = RunConfig) -> dict[str, Any]:
    """Return the values that ``read_overrides`` reads. Raises ``ConfigError`` for words that are not ``key=value``."""
    values, faults = read_overrides(words, schema)
    if faults:
        raise ConfigError(faults.values())
    return values


def read_overrides(words: Iterable[str], schema: type = RunConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Read ``key=value`` words as typed on a command line; return the values, and what is wrong with other words.

    The value of a text key is taken literally, without surrounding quotes; others are read by the key's type:
    ``1e-3``, ``true``, ``5``. A value that cannot be read stays text, and the type check reports it with its key.
    """
    kinds = {spec.name: spec.type for spec in key_specs(schema)}
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("_", "-")
        if not equals or not name:
            faults[word] = f"{word!r} is not key=value"
        elif args_key(name, kinds) is not None:
            values[name] = read_value(text.strip())
        elif kinds.get(name) is str:
            quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
            values[name] = text[1:-1] if quoted else text
        else:
            values[name] = _read_word(text.strip(), kinds.get(name))
    return values, faults


def given_keys(file: Mapping[str, Any], words: Mapping[str, Any]) -> set[str]:
    """Return the keys that a user set: all of ``words``, and those in ``file`` that differ from the defaults.

    A file may be the config of another run, which spells out every key.
    """
    defaults = RunConfig().flat()
    declared = {name: spec.default for name, spec in KEYS.items()}
    changed = {name for name, value in flatten(file) if value not in (defaults.get(name), declared.get(name))}
    return changed | {name for name, _ in flatten(words)}


def _read_word(text: str, kind: type | None) -> Scalar:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    for read in (int, float) if kind is int else (float,):
        with suppress(ValueError):
            return read(text)
    return text


# Faults of keys that are each valid but do not go together. One idea per check, since a faulty key ends every check
# that reads it


def _nesterov_faults(config: RunConfig) -> Iterator[str]:
    if config.train.nesterov and (config.train.optimizer != "sgd" or config.train.momentum == 0):
        yield "train.nesterov needs train.optimizer=sgd and train.momentum above 0"


def _seed_faults(config: RunConfig) -> Iterator[str]:
    if config.seed >= 2**63:
        yield f"seed must be below 2**63, the limit of what Flower can send, got {config.seed}"


def _points_faults(config: RunConfig) -> Iterator[str]:
    if config.barrier.points % 2 == 0:
        yield f"barrier.points must be odd, so that the midpoint is measured, got {config.barrier.points}"


def _warmup_faults(config: RunConfig) -> Iterator[str]:
    if config.mask.warmup_rounds >= config.rounds and config.strategy.name != "fedavg":
        yield f"mask.warmup-rounds ({config.mask.warmup_rounds}) leaves none of the {config.rounds} rounds to mask"


def _variant_faults(config: RunConfig) -> Iterator[str]:
    across = config.strategy.name == "fedpnu" and config.strategy.variant == "across-rounds"
    if across and config.mask.schedule not in (Mask.schedule, "complement"):
        yield f"strategy.variant=across-rounds implies mask.schedule=complement, but it is {config.mask.schedule!r}"


def _ratio_faults(config: RunConfig) -> Iterator[str]:
    if config.mask.ratio_shape == "constant" and config.mask.final_ratio not in (config.mask.ratio, Mask.final_ratio):
        yield "mask.final-ratio is set but mask.ratio-shape is constant; set it to linear or cosine"


_CHECKS = (_nesterov_faults, _seed_faults, _points_faults, _warmup_faults, _variant_faults, _ratio_faults)
