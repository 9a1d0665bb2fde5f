"""Parse YAML as plain data: tables, lists and scalars of limited size, without look-ups or code execution.

A file may come from anywhere. Its nesting levels and its nodes, with aliases expanded, are counted before anything is
built from them; tags other than those of JSON's types are refused; ``${...}`` is ordinary text. Numbers are those of
YAML 1.2 (``1e-3`` is one), dates are text, and a duplicate key is a fault.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _Base
except ImportError:
    from yaml import SafeLoader as _Base

MOST_BYTES = 4_000_000
# with aliases expanded; a sweep's list of seeds is the longest list in use
MOST_NODES = 200_000
DEEPEST = 40

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_FLOAT = re.compile(
    r"""^(?:
     [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


def parse_yaml(data: bytes) -> Any:
    """Return the value of a YAML document, None if it is empty.

    Raises a one-line ``ValueError`` for text that is not UTF-8, not YAML, too large, too deep, or not plain data.

    >>> parse_yaml(b"lr: 1e-3\\nname: ${oc.env:HOME}")
    {'lr': 0.001, 'name': '${oc.env:HOME}'}
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, and a file of settings has at most {MOST_BYTES:,}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        _count_events(text)
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _expanded(node, {}, set())
            return _constructed(loader, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_one_line(error)) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _PlainLoader(_Base):  # type: ignore[misc]
    """Builds tables, lists and scalars only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}null":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.tag != f"{_TAG}merge" and (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


_PlainLoader.yaml_constructors = {
    **{f"{_TAG}{kind}": _PlainLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in _KINDS},
    None: _PlainLoader.yaml_constructors[None],
}
_PlainLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("float", "timestamp")]
    for letter, resolvers in _PlainLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def _constructed(loader: _PlainLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, LookupError) as error:
        # `!!bool perhaps`, `!!int ""`, a number with more digits than Python reads
        raise ValueError("a value does not match its tag, or is a number with too many digits") from error


def _count_events(text: str) -> None:
    """Raise ``ValueError`` for a text with too many nodes or levels, before any of them is built."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep, from line {event.start_mark.line + 1} on")
        if nodes > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_NODES:,} values")


def _expanded(node: yaml.Node, counted: dict[int, int], inside: set[int]) -> int:
    """Return the number of nodes of ``node``, with aliases expanded. Raises ``ValueError`` for too many or a loop."""
    place = id(node)
    if place in inside:
        raise ValueError(f"the alias in line {node.start_mark.line + 1} refers to a node that contains it")
    if place not in counted:
        inside.add(place)
        children = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            children = (one for pair in node.value for one in pair)
        total = 1
        for child in children:
            total += _expanded(child, counted, inside)
            if total > MOST_NODES:
                raise ValueError(f"its aliases expand to more than {MOST_NODES:,} values")
        inside.remove(place)
        counted[place] = total
    return counted[place]


def _one_line(error: yaml.MarkedYAMLError) -> str:
    # without the surrounding text: the file's content may be confidential
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    said = error.problem or error.context or "not YAML"
    return " ".join(f"{where}{said}".split())
