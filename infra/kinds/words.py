"""What pages say: sentences and code of Python's own library, divided by module, so that what is held out shares no sentence with what is learned."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HELD_SHARE = 4
"""One module in so many speaks for the held-out pictures alone."""

_LEAST_PARAGRAPH, _LEAST_CODE_LINES = 50, 12
_FIRST = {False: "bdfglmnrst", True: "chjkpvwyzq"}
_SECOND = {False: "aeio", True: "uyai"}


@dataclass(frozen=True)
class Words:
    """What one side says.

    Attributes:
        paragraphs: Sentences of docstrings, white space reduced to single spaces.
        code: Source files of some length, by lines.
        held: Which side.
    """

    paragraphs: tuple[str, ...]
    code: tuple[tuple[str, ...], ...]
    held: bool

    def paragraph(self, rng: random.Random, least: int = 0) -> str:
        """Whole paragraphs of at least so many characters together."""
        found = rng.choice(self.paragraphs)
        while len(found) < least:
            found += " " + rng.choice(self.paragraphs)
        return found

    def words(self, rng: random.Random, count: int) -> str:
        """Successive words of a paragraph."""
        of = re.findall(r"[A-Za-z][A-Za-z'-]+", self.paragraph(rng, 12 * count))
        start = rng.randrange(max(1, len(of) - count))
        return " ".join(of[start : start + count])

    def title(self, rng: random.Random, low: int = 1, high: int = 4) -> str:
        """A few words, the first of them with a capital."""
        found = self.words(rng, rng.randint(low, high))
        return found[:1].upper() + found[1:]

    def name(self, rng: random.Random) -> str:
        """A first name and a surname that nobody has, of letters that the other side does not begin them with."""
        return " ".join(
            "".join(rng.choice(_FIRST[self.held]) + rng.choice(_SECOND[self.held]) for _ in range(rng.randint(2, 3))).capitalize() for _ in range(2)
        )

    def lines(self, rng: random.Random, count: int) -> list[str]:
        """Successive lines of a source file."""
        of = rng.choice(self.code)
        start = rng.randrange(max(1, len(of) - count))
        return [line[:110] for line in of[start : start + count]]


@cache
def words(held: bool) -> Words:
    """What the pictures that are learned from say, or those that are held out."""
    paragraphs: list[str] = []
    code: list[tuple[str, ...]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if (zlib.crc32(path.stem.encode()) % _HELD_SHARE == 0) is not held:
            continue
        text = path.read_text(errors="replace")
        lines = tuple(text.expandtabs(4).splitlines())
        if len(lines) >= _LEAST_CODE_LINES:
            code.append(lines)
        paragraphs += _paragraphs(text)
    known = set(words(False).paragraphs) if held else set()
    return Words(tuple(part for part in dict.fromkeys(paragraphs) if part not in known), tuple(code), held)


def _paragraphs(source: str) -> list[str]:
    """Of the docstrings of a module: those that read like sentences."""
    texts = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    return [part for part in found if len(part) >= _LEAST_PARAGRAPH and part[0].isupper() and _is_prose(part)]


def _is_prose(text: str) -> bool:
    return sum(letter.isalpha() or letter in " ,." for letter in text) > 0.93 * len(text)
