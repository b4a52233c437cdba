"""The table of models, layouts and spellings in docs/layouts.md, made by baking each into each.

    python tools/model_matrix.py

It needs diffusers and takes some minutes; a test tries a part of the table in every run, and all of it with
``-m slow``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "layouts.md"


def table() -> str:
    """A row for each model and layout, a column for each way to spell a LoRA."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from dialect_files import SPELLINGS
    from model_matrix import LAYOUTS, MODELS, row_titles, verdicts

    head = ["model and layout", *SPELLINGS]
    lines = [head, ["---"] * len(head)]
    for name, number in MODELS:
        titles = row_titles(name, number)
        rows: dict[str, list[str]] = {layout: [titles[layout]] for layout in LAYOUTS}
        with tempfile.TemporaryDirectory() as folder:
            for layout, _, verdict in verdicts(name, number, tuple(SPELLINGS), LAYOUTS, Path(folder)):
                rows[layout].append(verdict)
        lines += rows.values()
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" --- ", "---")


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    made = table()
    text = re.sub(
        r"(<!-- matrix -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{made}\n{m[2]}", text, flags=re.S
    )
    DOCUMENT.write_text(text, encoding="utf-8")
