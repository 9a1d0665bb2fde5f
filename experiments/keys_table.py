"""A schema of keys as a table: ``fedpfn keys`` and ``fedpfn lmc keys``."""

from rich.table import Table
from rich.text import Text

from fedpfn.runs.keys import key_specs


def keys_table(schema: type, matching: str = "") -> Table:
    """Return every key with its default, its allowed values and its purpose.

    With ``matching``, return only keys with it in their name or description. Raises ``ValueError`` if there are none.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("key", "default", "about"):
        table.add_column(name, overflow="fold")
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    for spec in key_specs(schema):
        limits = [f"{words[bound]} {limit:g}" for bound, limit in spec.limits.items()]
        choices = [*spec.choices, "package.module:name"] if spec.own else spec.choices
        extent = ", ".join(choices or limits)
        row = (spec.name, repr(spec.default), spec.about + (f" ({extent})" if extent else ""))
        if matching.lower() in f"{row[0]} {row[2]}".lower():
            table.add_row(*map(Text, row))
    if not table.row_count:
        raise ValueError(f"no key matches {matching!r}")
    return table
