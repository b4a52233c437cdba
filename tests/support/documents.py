"""The code in the documents: every block of commands or Python, and whether the document says it is not run.

The mark is a comment before the block, ``<!-- not run: REASON -->``, which no reader of the page sees.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
)
PROGRAMS = ("paramerge", "python", "pip", "make", "accelerate", "torchrun", ".venv/bin/pre-commit")
MARK = re.compile(r"<!-- not run: (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A block of code: where it is, its lines, and the reason for which it is not run."""

    document: Path
    line: int
    language: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; continued lines are one, what a console printed is left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").parse(document.read_text(encoding="utf-8"))


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(block for document in DOCUMENTS for block in _blocks(document))


def _blocks(document: Path) -> Iterator[Block]:
    previous: Token | None = None
    for token in tokens(document):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info if token.type == "fence" else _language(token.content)
            comment = previous.content if previous is not None and previous.type == "html_block" else ""
            reason = found[1] if (found := MARK.search(comment)) else ""
            yield Block(document, token.map[0] + 1, language, token.content, reason)
        previous = token


def _language(text: str) -> str:
    """Of an indented block: commands, Python, or a picture made of text."""
    first = text.split(maxsplit=1)[0]
    return "sh" if first in PROGRAMS else "python" if first in ("import", "from") else "text"


def inline_code() -> Iterator[tuple[Path, str]]:
    """Every ``code`` within a sentence."""
    for document in DOCUMENTS:
        for token in tokens(document):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield document, child.content


def links() -> Iterator[tuple[Path, str]]:
    """Every link and picture that is no address of the network."""
    for document in DOCUMENTS:
        for token in tokens(document):
            for child in token.children or ():
                target = str(child.attrGet("href") or child.attrGet("src") or "")
                if target and "://" not in target:
                    yield document, target


def headings(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    lines = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
