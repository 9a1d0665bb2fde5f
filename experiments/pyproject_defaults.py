"""The defaults of the run config as tables of pyproject.toml, where Flower looks for the keys that a run may set.

``python -m experiments.pyproject_defaults`` rewrites them after a change to the schema; a test compares them.
"""

import json
from pathlib import Path

from fedpfn.runs.config import KEYS

HEADING = "[tool.flwr.app.config"


def defaults_text() -> str:
    """Return the tables ``[tool.flwr.app.config]`` and below as TOML."""
    tables: dict[str, list[str]] = {}
    for name, spec in KEYS.items():
        table, _, leaf = name.rpartition(".")
        # JSON strings, numbers and booleans are valid TOML
        line = f"{leaf} = {json.dumps(spec.default, ensure_ascii=False)}"
        tables.setdefault(f"{HEADING}{'.' if table else ''}{table}]", []).append(line)
    return "\n\n".join("\n".join([heading, *lines]) for heading, lines in tables.items()) + "\n"


def with_defaults(text: str) -> str:
    """Return the text of a pyproject.toml with its tables of defaults replaced."""
    blocks = text.split("\n\n")
    old = [number for number, block in enumerate(blocks) if block.startswith(HEADING)]
    blocks[old[0] : old[-1] + 1] = [defaults_text().rstrip("\n")]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "pyproject.toml"
    path.write_text(with_defaults(path.read_text()))
