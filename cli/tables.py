"""Tables in a terminal, all of one kind."""

from __future__ import annotations

from rich.table import Table


def plain_table(*titles: str) -> Table:
    """A table without lines; a title that begins with ``>`` is over a column of numbers, never broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        if title.startswith(">"):
            table.add_column(title.removeprefix(">"), justify="right", no_wrap=True)
        else:
            table.add_column(title, overflow="fold")
    return table
