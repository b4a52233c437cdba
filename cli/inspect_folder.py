"""The table of ``paramerge inspect FOLDER``, and its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from paramerge.cli.render import gigabytes, out, shown
from paramerge.cli.tables import plain_table
from paramerge.inspect.folder import Entry

_TITLES = ("trigger", "title")


def show_folder(folder: Path, entries: Sequence[Entry]) -> None:
    """Print a line for each entry, and their sum."""
    table = plain_table("kind", ">rank", "for", ">size", "file")
    for entry in entries:
        kind = entry.family if entry.what == "adapter" else entry.what
        name = shown(str(entry.path.relative_to(folder)))
        table.add_row(
            shown(kind),
            _rank(entry),
            shown(entry.architecture),
            gigabytes(entry.size),
            f"{name} {note}" if (note := _note(entry)) else name,
        )
    out.print(table)
    counts = Counter(entry.what for entry in entries)
    total = ", ".join(f"{count} {_plural(what, count)}" for what, count in counts.most_common())
    out.print(f"[dim]{total}, {gigabytes(sum(entry.size for entry in entries))} together[/dim]")


def folder_data(folder: Path, entries: Sequence[Entry]) -> dict[str, object]:
    """All facts, ready for JSON."""
    return {
        "what": "folder",
        "path": str(folder),
        "entries": [
            {
                "path": str(entry.path),
                "what": entry.what,
                "family": entry.family,
                "dialect": entry.dialect,
                "architecture": entry.architecture,
                "layers": entry.layers,
                "ranks": None if entry.ranks is None else list(entry.ranks),
                "bytes": entry.size,
                "notes": dict(entry.notes or {}),
                "problem": entry.problem,
            }
            for entry in entries
        ],
    }


def _rank(entry: Entry) -> str:
    if entry.ranks is None or entry.ranks == (0, 0):
        return ""
    least, largest = entry.ranks
    return str(largest) if least == largest else f"{least}-{largest}"


def _note(entry: Entry) -> str:
    if entry.problem:
        return f"[yellow]{shown(entry.problem)}[/yellow]"
    notes = entry.notes or {}
    found = next((f"{title}: {notes[title]}" for title in _TITLES if title in notes), "")
    return f"[dim]({shown(found)})[/dim]" if found else ""


def _plural(what: str, count: int) -> str:
    nouns = {
        "unknown": ("file of no known kind", "files of no known kind"),
        "damaged": ("damaged", "damaged"),
    }
    singular, plural = nouns.get(what, (what, f"{what}s"))
    return singular if count == 1 else plural
