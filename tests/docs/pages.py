"""What the Markdown pages say, in pieces that can be checked: links, headings, code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n)+")
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.M)


class Link(NamedTuple):
    """page: the file that the link leads to, anchor: the heading in it, "" for none."""

    page: Path
    anchor: str


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """All but blocks of code."""
        return _FENCE.sub("", self.text)

    def links(self) -> Iterator[Link]:
        """Those that lead to files of the project."""
        for target in _LINK.findall(self.prose):
            if not target.startswith(("http://", "https://")):
                path, _, anchor = target.partition("#")
                yield Link((self.path.parent / path).resolve() if path else self.path, anchor)

    def anchors(self) -> set[str]:
        """What headings can be linked by, as GitHub makes it of them."""
        headings = (heading.lower().replace("`", "") for heading in _HEADING.findall(self.prose))
        return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in headings}

    def words(self) -> list[str]:
        """What stands between backticks."""
        return [" ".join(word.split()) for word in _INLINE.findall(self.prose)]

    def blocks(self) -> list[str]:
        """Blocks of code."""
        return [*_FENCE.findall(self.text), *_INDENTED.findall(self.prose)]

    def lines_of_code(self) -> Iterator[str]:
        """Command lines: those of blocks, with their continuations and without comments, and what is in backticks."""
        for block in self.blocks():
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                yield re.sub(r"(^|\s)#\s.*", "", line).strip()
        yield from self.words()


PAGES = [
    Page(path)
    for pattern in ("*.md", "docs/*.md", "manifests/*.md", "examples/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]
