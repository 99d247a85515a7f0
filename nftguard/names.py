"""Names that others choose, made fit for a record and a terminal: of processes, cgroups, users and files. Pure."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[A-Za-z0-9._+:@/-]+")


def clean(name: str | bytes, most: int = 256) -> str:
    """Give the name with every character that does not print as "?", at most `most` characters.

    What does not print: control characters, line ends, bidirectional overrides, bytes that are not UTF-8 (also as the
    surrogates that `os.fsdecode` makes of them).
    """
    if isinstance(name, bytes):
        name = name[: most * 4].decode(errors="surrogateescape")
    return "".join(letter if letter.isprintable() else "?" for letter in name[:most])


def shown(name: str) -> str:
    """Give a name as it stands in a sentence: as it is where it can end nothing, else cleaned and in double quotes.

    A process that calls itself `curl (ssh.service, uid 0)` is shown with that in quotes, a quote in it behind a
    backslash: in `from NAME (UNIT, uid N)` the first unquoted parenthesis is ours.
    """
    if _PLAIN.fullmatch(name):
        return name
    return '"' + clean(name).replace("\\", "\\\\").replace('"', '\\"') + '"'
