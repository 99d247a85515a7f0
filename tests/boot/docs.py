"""The documentation, run: each command that a page shows is run on a machine, and must print what the page says.

A page is Markdown. What counts in it, from top to bottom:

- A fenced block `console`: `# ` begins a command of root's, `$ ` one of an ordinary user's, `> ` what continues it; the
  other lines are what it prints, errors included. Each command has a shell of its own, in a login session, and exits
  with 0.
- Comments in HTML, which no reader sees, before a block: `<!-- only: debian12 -->` for that release alone,
  `<!-- exit: 1 0 -->` the last two commands exit so, `<!-- one command -->` lines that begin with `# ` are printed,
  `<!-- input: y -->` what is typed when it asks, `<!-- stop -->` it is interrupted when all that is shown was printed,
  `<!-- file: /etc/nftguard.toml -->` the block is written to that file, `<!-- refused -->` as a configuration it is not
  valid, `<!-- not run: REASON -->`.
- Comments that stand by themselves: `<!-- run: COMMANDS -->` as root, and `<!-- until: COMMAND -->` again until it
  exits with 0, at most ten seconds. `only` may stand before these, too.
- Anywhere in the page: `<!-- machine: bare -->`, it is for a machine where nftguard is not installed yet.

Compared is what both print once times, numbers of processes, versions and the like are replaced by what they are
(`plain`); `…` stands for the rest of a line, and alone on a line for any lines.

`console` runs it on a machine, `python -m tests.boot.console` one page of it.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*(\S*)")
_COMMENT = re.compile(r"<!--\s*([a-z ]+?)(?::\s*(.*?))?\s*-->", re.DOTALL)
_NOTES = {"only", "exit", "one command", "input", "stop", "file", "refused", "not run"}
_STEPS = {"run", "until", "machine"}
_END = r"\n"
_VERIFY = "systemctl daemon-reload\n! systemd-analyze verify --man=no {} 2>&1 | grep ."  # what it says is a complaint
_PATIENCE = 10.0  # seconds

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_SHAPES = tuple(
    (re.compile(pattern, re.MULTILINE), shape)
    for pattern, shape in (
        (r"\b[0-9]{16}\b|\b[0-9]{10}(?:\.[0-9]+)?\b", "<time>"),  # since 1970, in microseconds or seconds
        (r"(?:\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) )?\b\d{4}-\d\d-\d\d\b(?:[T ](?=\d\d:))?", "<day> "),
        (rf"\b{_MONTH} [ \d]\d\b", "<day>"),
        (r"\b\d\d:\d\d(?::\d\d(?:\.\d+)?)?\b(?:Z|\+\d\d:?\d\d| UTC)?", "<time>"),
        (r"<day> *<time>", "<time>"),
        (r"(?<![\w.])\d+(?:\.\d+)? ?(?:µs|us|ms|s|sec|seconds?|min|minutes?|h|hours?|d|days?)\b", "<span>"),
        (r"<span>(?: <span>)+", "<span>"),
        (r"\b(process(?:es)?|pid|PID:|thread) \d+", r"\1 <process>"),
        (r"\[\d+\]:", "[<process>]:"),
        (r"(?<![\w.:])\d+\.\d+\.\d+(?:[~+-][\w.+~]+)?(?![\w.:])", "<version>"),
        (r"\b(?!0\b)[\d,]+ (packets?|bytes)\b", r"<number> \1"),
        (r"\b(packets|bytes) (?!0\b)\d+", r"\1 <number>"),
        (r"^( *\S+ +(?:output|forward|input|bridge) +\w+ +\S+) +(?!0\b)\d+ +\d+", r"\1 <number> <number>"),  # status
        (r"( [\d,]+) {2,}(?:[\d,]+|-)  (?=\S)", r"\1 <number> "),  # report
        (r" packets?\b", " packets"),
        (r"[ \t]+", " "),
    )
)


class DocsError(Exception):
    """A page cannot be read, or does not say what happens."""


@dataclass(slots=True)
class Command:
    """One command of a block, and what the page says that it prints."""

    line: int
    """Where its output begins in the page, counted from 0."""
    root: bool
    text: str
    shown: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Block:
    """A fenced block, or a hidden step, whose kind is then one of `_STEPS`."""

    line: int
    """Of its first line within, counted from 0."""
    kind: str
    body: list[str]
    notes: dict[str, str]

    def commands(self) -> list[Command]:
        """Take a console block apart. Raises DocsError."""
        found: list[Command] = []
        for number, text in enumerate(self.body, self.line):
            if text[:2] in {"# ", "$ "} and not (found and "one command" in self.notes):
                found.append(Command(number + 1, text[0] == "#", text[2:]))
            elif not found:
                raise DocsError(f"line {number + 1}: a console block begins with a command, after `# ` or `$ `")
            elif text[:2] == "> " and not found[-1].shown:
                found[-1].text += f"\n{text[2:]}"
                found[-1].line += 1
            else:
                found[-1].shown.append(text)
        return found


def blocks(page: str) -> list[Block]:
    """Give what counts in a page, in order. Raises DocsError with the line of what is not as it must be."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    lines = page.splitlines()
    at = 0
    while at < len(lines):
        if fence := _FENCE.match(lines[at]):
            begin, end = at + 1, at + 1
            while end < len(lines) and lines[end].strip() != fence[2]:
                end += 1
            if end == len(lines):
                raise DocsError(f"line {begin}: the block is never closed")
            body = [line.removeprefix(fence[1]) for line in lines[begin:end]]
            found.append(Block(begin, fence[3], body, notes))
            notes, at = {}, end + 1
        elif lines[at].startswith("<!--"):
            end = next((number for number in range(at, len(lines)) if "-->" in lines[number]), at)
            comment = _COMMENT.fullmatch("\n".join(lines[at : end + 1]).strip())
            if not comment or comment[1] not in _NOTES | _STEPS:
                raise DocsError(f"line {at + 1}: a comment that says nothing known: {lines[at]}")
            if comment[1] in _NOTES:
                notes[comment[1]] = comment[2] or ""
            else:
                found.append(Block(at, comment[1], [comment[2] or ""], notes))
                notes = {}
            at = end + 1
        else:
            if notes and lines[at].strip():
                raise DocsError(f"line {at + 1}: no block follows the comment <!-- {next(iter(notes))} -->")
            at += 1
    return found


def bare(page: str) -> bool:
    """Whether a page is for a machine where nftguard is not installed yet."""
    return any(block.kind == "machine" and block.body == ["bare"] for block in blocks(page))


def plain(text: str) -> str:
    """Replace what is never the same twice by what it is, and white space by single blanks.

    A line that is indented belongs to the one before: where a line is folded depends on what is never the same.
    """
    text = re.sub(r"\n(?=[ \t])", "", text)
    for pattern, shape in _SHAPES:
        text = pattern.sub(shape, text)
    return "\n".join(line.strip() for line in text.splitlines()).strip()


def matches(shown: Iterable[str], printed: str) -> bool:
    """Whether a command printed what is shown."""
    pattern = ""
    for line in plain("\n".join(shown)).splitlines():
        if line == "…":
            pattern = f"{pattern.removesuffix(_END)}(?: .*)?{_END}" if pattern.endswith(_END) else pattern
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(map(re.escape, line.split("…"))) + _END
    return re.fullmatch(pattern, f"{text}\n" if (text := plain(printed)) else "") is not None


class Console(Protocol):
    """Where commands are run."""

    release: str
    """debian12, for example."""

    def run(self, command: str, *, root: bool) -> tuple[int, str]:
        """Run a command in a shell, and give its exit code and what it printed."""

    def talk(self, command: str, *, root: bool, typed: str | None, enough: Callable[[str], bool]) -> tuple[int, str]:
        """Run one that asks for something to be typed, or one that is interrupted when it has printed enough."""

    def write(self, path: str, text: str) -> None:
        """Write a file."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A command that did not do what the page says."""

    command: Command
    printed: str
    why: str

    def __str__(self) -> str:
        shown = "\n".join(self.command.shown)
        return (
            f"line {self.command.line}: {self.command.text}\n{self.why}\n"
            f"--- shown\n{shown}\n--- printed\n{self.printed.rstrip()}\n---"
        )


def run(page: str, console: Console) -> Iterator[Difference]:
    """Run a page, and give what differs. Raises DocsError where a hidden step fails."""
    for block in blocks(page):
        if block.notes.get("only", console.release) != console.release or "not run" in block.notes:
            continue
        if block.kind in _STEPS:
            _step(block, console)
        elif path := block.notes.get("file"):
            console.write(path, "\n".join([*block.body, ""]))
            if found := re.fullmatch(r"/etc/systemd/system/([^/]+?)(?:\.d/[^/]+\.conf)?", path):
                _hidden(block, console, _VERIFY.format(found[1]))
        elif block.kind == "console":
            yield from _console(block, console)


def _step(block: Block, console: Console) -> None:
    if block.kind == "run":
        _hidden(block, console, block.body[0])
    elif block.kind == "until":
        end = time.monotonic() + _PATIENCE
        while (done := console.run(block.body[0], root=True))[0]:
            if time.monotonic() > end:
                raise DocsError(f"line {block.line + 1}: waited in vain for {block.body[0]}\n{done[1]}")
            time.sleep(0.05)


def _hidden(block: Block, console: Console, command: str) -> None:
    code, printed = console.run(f"set -e\n{command}", root=True)
    if code:
        raise DocsError(f"line {block.line + 1}: exit code {code}: {command}\n{printed}")


def _console(block: Block, console: Console) -> Iterator[Difference]:
    commands = block.commands()
    codes = [int(code) for code in block.notes.get("exit", "").split()]
    for number, command in enumerate(commands, len(codes) - len(commands)):
        last = command is commands[-1]
        typed = block.notes.get("input") if last else None
        stopped = last and "stop" in block.notes
        if typed is not None or stopped:
            code, printed = console.talk(
                command.text, root=command.root, typed=typed, enough=partial(_enough, command) if stopped else _never
            )
        else:
            code, printed = console.run(command.text, root=command.root)
        wanted = codes[number] if number >= 0 else 0
        if code != wanted and not stopped:
            yield Difference(command, printed, f"exit code {code}, not {wanted}")
        elif not matches(command.shown, printed):
            yield Difference(command, printed, "printed something else")


def _enough(command: Command, printed: str) -> bool:
    return matches(command.shown, printed)


def _never(_: str) -> bool:
    return False


def written(page: str, found: Iterable[Difference]) -> str:
    """Put what was printed in the place of what was shown."""
    lines = page.splitlines()
    for one in sorted(found, key=lambda one: -one.command.line):
        lines[one.command.line : one.command.line + len(one.command.shown)] = one.printed.rstrip().splitlines()
    return "\n".join([*lines, ""])
