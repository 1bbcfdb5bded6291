"""Parses the documents of the project: code blocks, tables, headings and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

TOP = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")

_FENCE = re.compile(r"(?ms)^ *```([^\n]*)\n(.*?)^ *```$")
_HEADING = re.compile(r"(?m)^#{1,6} +(.+?) *$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block. ``info`` is the text after the opening fence, ``line`` the line number of the fence."""

    info: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path relative to the top of the checkout."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without its code blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self) -> Iterator[Block]:
        """Yield the code blocks, in order."""
        text = self.text
        for match in _FENCE.finditer(text):
            yield Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 1)

    def anchors(self) -> set[str]:
        """Return the anchors that GitHub derives from the headings."""
        return {_anchor(match[1]) for match in _HEADING.finditer(self.prose)}

    def links(self) -> Iterator[str]:
        """Yield the targets of links and images that are files of the project or headings."""
        for match in _LINK.finditer(self.prose):
            if not re.match(r"[a-z]+:", match[1]):
                yield match[1]

    def rows(self, heading: str) -> Iterator[list[str]]:
        """Yield the rows of the tables in a section, without the header row. A row is a list of the texts of its cells."""
        level, _, rest = self.prose.partition(f"\n## {heading}\n")
        assert rest or not level, f"{self.name} has no section {heading!r}"
        for line in rest.partition("\n## ")[0].splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if line.startswith("| `"):
                yield cells


def documents() -> list[Document]:
    """Return all documents: the files listed in TOP, and those in docs/."""
    return [Document(path) for path in (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md")))]


def code(cell: str) -> list[str]:
    """Return the texts in backquotes in a table cell."""
    return _CODE.findall(cell)


def _anchor(heading: str) -> str:
    """Derive an anchor as GitHub does: lower case, without punctuation, with dashes instead of spaces."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")
