"""Where verbs print: what a terminal shows, what a pipe and a machine get, and that something takes a while."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn, Self, TextIO, TypeVar

import click

from nftguard.errors import ConfigError, NftguardError, Problem
from nftguard.look import PIPE, Look, columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nftguard.control import Answer

_F = TypeVar("_F", bound="Callable[..., Any]")
PATIENCE = 1.0  # seconds before it is told that a verb is still at it
_NARROW = 20  # columns; a terminal that says less is not believed
_JSON = "nftguard.json"


def never_fail_to_print() -> None:
    """Print what this terminal cannot show as "?": names may hold any letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def look(stream: TextIO) -> Look:
    """Tell what lines on a stream are fit to: its columns and colours where it is a terminal.

    As is the custom, COLUMNS counts more than what the terminal says, and there are no colours where NO_COLOR is set
    to anything (no-color.org), or TERM is "dumb" or missing.
    """
    if not stream.isatty():
        return PIPE
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 5 else 0
    if not width:
        try:
            width = os.get_terminal_size(stream.fileno()).columns
        except OSError:
            width = 0
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return Look(max(width, _NARROW) if width else 80, colours=not plain)


def show(lines: Iterable[str]) -> None:
    """Print lines that are fit already."""
    click.echo("\n".join(lines), color=True)  # else click takes colours out, where it knows better


def say(text: str, *, err: bool = False) -> None:
    """Print a text, folded on a terminal."""
    fit = look(sys.stderr if err else sys.stdout)
    click.echo("\n".join(part for line in text.split("\n") for part in fit.fold(line)), err=err)


def complain(problems: Iterable[str]) -> None:
    """Print on stderr what is to be known besides."""
    for problem in problems:
        say(f"nftguard: {problem}", err=True)


def document(found: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(found))


def json_option(text: str = "Print one JSON document, for machines.") -> Callable[[_F], _F]:
    """Give a verb the option --json. Its errors are then documents, too: `fail`."""

    def remember(ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
        ctx.meta[_JSON] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=remember, help=text)


def fail(ctx: click.Context, error: NftguardError) -> NoReturn:
    """End a verb with its error: with its exit code, lines on stderr, and for a machine a document on stdout."""
    if ctx.meta.get(_JSON):
        listed = error.problems if isinstance(error, ConfigError) else ()
        document({"error": str(error), "exit": error.exit_code, "problems": [_problem(one) for one in listed]})
    say(str(error) if isinstance(error, ConfigError) else f"nftguard: {error}", err=True)
    sys.exit(error.exit_code)


def _problem(found: Problem) -> dict[str, str]:
    return {"file": found.file, "key": found.key, "message": found.message}


def end(ctx: click.Context, answer: Answer, warnings: Iterable[str] = (), *, recorded: bool = False) -> NoReturn:
    """Print what was done, and end as it says; `recorded`: the daemon has told it in the journal, too."""
    from nftguard.hostinfo import to_journald

    if ctx.meta.get(_JSON):
        done = {"done": answer.exit == 0, "exit": answer.exit, "text": answer.text, "warnings": [*warnings]}
        document(done)
    elif not (recorded and to_journald(sys.stderr)):  # else it is systemctl reload
        complain(warnings)
        say(answer.text, err=answer.exit != 0)
    sys.exit(answer.exit)


class Wait:
    """Says on stderr that a verb is still at it, once it takes longer than a second, if that is a terminal.

    Whatever is printed is printed after it, since it has the line for itself.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._far = ""
        self._shown = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._over.set()
            self._thread.join()
            if self._shown:
                self._write("")

    def step(self, done: int, of: int) -> None:
        """Say how far it has come."""
        self._far = f"{done:,} of {of:,}, "

    def _tell(self) -> None:
        if self._over.wait(PATIENCE):
            return
        while True:
            self._write(f"nftguard: {self._what} ... {self._far}{time.monotonic() - self._began:.0f} s")
            if self._over.wait(0.5):
                return

    def _write(self, text: str) -> None:
        """Write over what is on the line; without an escape code, which a dumb terminal would not know."""
        text = look(sys.stderr).fold(text)[0]
        with contextlib.suppress(OSError):  # the terminal is gone
            sys.stderr.write(f"\r{text}{' ' * (self._shown - columns(text))}{'' if text else chr(13)}")
            sys.stderr.flush()
        self._shown = columns(text)
