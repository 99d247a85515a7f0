"""How lines look where they are printed: as wide as a terminal, with its colours, or as they are. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a word is to whoever reads it; the value is how a terminal shows it (ECMA-48, 8.3.117)."""

    GOOD = "32"  # green
    DOUBT = "33"  # yellow
    BAD = "1;31"  # red and bold
    ADDED = GOOD
    REMOVED = "31"  # red
    HEAD = "1"  # bold


@dataclass(frozen=True, slots=True)
class Look:
    """What lines are fit to: `width` in columns, None where they stay whole, as in a pipe."""

    width: int | None = None
    colours: bool = False

    def paint(self, text: str, role: Role) -> str:
        """Give a text in the colour of its role, where there are colours."""
        return f"\x1b[{role.value}m{text}\x1b[0m" if self.colours and text else text

    def fold(self, line: str, hang: int = 2) -> list[str]:
        """Give the line in as many as it takes, the later ones indented by `hang` columns more than the first.

        What does not print is "?", so that no name commands a terminal.
        """
        line = line if line.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in line)
        if self.width is None or columns(line) <= self.width:
            return [line]
        return _fold(re.findall(" *[^ ]+", line), self.width, hang)

    def fold_script(self, line: str) -> list[str]:
        """Give a line of an nft script in as many as it takes, which still are that script: what is quoted is whole."""
        if self.width is None or columns(line) <= self.width:
            return [line]
        *parts, last = _fold(re.findall(' *(?:"[^"]*"|[^ "])+', line), self.width - 2, 4, whole=True)
        return [*(f"{part} \\" for part in parts), last]

    def lead(self, lines: list[str], word: str, role: Role) -> list[str]:
        """Paint the word with which the first of these lines begins."""
        return [self.paint(word, role) + lines[0].removeprefix(word), *lines[1:]]


PIPE = Look()
"""Lines stay whole, without colours."""


def columns(text: str) -> int:
    """Count the columns that a text takes: wide letters (UAX #11) take two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _fold(words: list[str], width: int, hang: int, *, whole: bool = False) -> list[str]:
    """Fill lines with words, each with the spaces before it; what is too wide for one is cut, unless `whole`."""
    margin = len(words[0]) - len(words[0].lstrip(" "))
    indent = " " * min(margin + hang, width // 2)
    done: list[str] = []
    now = ""
    for word in words:
        if now and columns(now + word) > width:
            done.append(now)
            now = indent + word.lstrip(" ")
        else:
            now += word
        while columns(now) > width and not whole:
            fits = _fitting(now, width)
            done.append(now[:fits])
            now = indent + now[fits:]
    return [*done, now]


def _fitting(text: str, width: int) -> int:
    """Count the letters at its beginning that fit."""
    used = 0
    for place, letter in enumerate(text):
        used += columns(letter)
        if used > width:
            return place
    return len(text)
