"""The verb that puts a configuration in force for a while, and asks whether it may stay: try."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import select
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from nftguard import complete, screen
from nftguard.errors import EX_FAILED, UnavailableError
from nftguard.look import columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.control import Answer

_STDIN = 0
_MOST = 1024  # bytes of an answer
_COUNTDOWN = 48  # columns behind the question, and for the answer
_GONE = "the daemon is gone, and so is the trial: as it starts anew, it puts the last good rules back"


@click.command("try", short_help="Put a configuration in force, and back unless you confirm.")
@click.option(
    "--timeout",
    metavar="TIME",
    default="60s",
    show_default=True,
    shell_complete=complete.times,
    help="How long it waits for you: 30s, 5m, up to 1h.",
)
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.pass_context
def try_(ctx: click.Context, timeout: str, file: Path | None) -> None:
    """Put a configuration in force, ask, and put the old rules back unless you say in time that the new may stay.

    \b
    nftguard try            the configuration, as it was edited
    nftguard try new.toml   another file in the place of the main one;
                            confirmed, it is copied there

    The main file that was there before stays beside it, with .before at the end of its name.

    The old rules are back on "no", on Ctrl-C, when the time is over, when the terminal or the connection dies, when the
    daemon dies, and after a reboot. Files that were tried and not confirmed are not taken by a restart or a reboot
    either: edit them, or let `nftguard apply` take them as they are. The running daemon is needed.

    \b
    exit 0  it stays: confirmed, or in force already
    exit 1  the old rules are back
    """
    from nftguard import config, control, trial, values

    path: Path = ctx.meta["config"]
    try:
        seconds = values.duration(timeout, trial.LONGEST)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from None
    word = secrets.token_hex(8)

    def ask(verb: str, **arguments: int | bool) -> Answer | None:
        with screen.Wait("waiting for the daemon"):
            return control.ask(verb, path, trial=word, **arguments)

    woken = _signals()
    if file is None or file.resolve() == path.resolve():
        config.load(path)  # refused here, where more files can be read than the service may
        begun, content, question = ask("try", seconds=seconds), None, "Keep these rules?"
    else:
        found, content = config.load(path, file), file.read_bytes()
        offer = trial.offer(word, found)
        try:
            begun = ask("try", seconds=seconds, offered=True)
        finally:
            offer.unlink(missing_ok=True)
        question = f"Keep these rules, and copy {file} to {path}?"
    if begun is None:
        raise UnavailableError(
            "no daemon is running, and it is what would put the rules back; start it (systemctl start nftguard), or "
            "use `nftguard apply`"
        )
    if begun.exit or begun.text == trial.NOTHING:
        _end(begun)
    if not _confirmed(begun.text, question, seconds, woken):
        _end(ask("rollback"), EX_FAILED)
    if file is None or content is None:
        _end(ask("confirm"))
    _copied(path, file, content, ask)


def _signals() -> int:
    """Have what would end this process wake it up instead: give the descriptor that becomes readable then."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return woken


def _confirmed(text: str, question: str, seconds: int, woken: int) -> bool:
    """Show what is on trial, and wait for the answer. A terminal that is gone is no answer, and none is a no."""
    end = time.monotonic() + seconds
    terminal = os.isatty(_STDIN) and sys.stdout.isatty()
    again = "\r" if terminal else ""  # the same line again, each second
    typed = b""
    width = screen.look(sys.stdout).width
    try:
        screen.say(text)
        if terminal and width and columns(question) + _COUNTDOWN > width:  # only one line can be covered
            screen.say(question)
            question = "Shall it be?"
        while (left := end - time.monotonic()) > 0:
            counted = f"{math.ceil(left):>{len(str(seconds))}}"  # as wide as before, so that it covers it
            click.echo(f"{again}{question} [y/N] The old ones are back in {counted} s: ", nl=False)
            ready, _, _ = select.select([_STDIN, woken], [], [], min(left, 1.0) if terminal else left)
            if woken in ready:
                break
            if _STDIN in ready:
                piece = os.read(_STDIN, _MOST)
                typed += piece
                if b"\n" in typed:
                    return typed.partition(b"\n")[0].strip().lower() in {b"y", b"yes"}
                if not piece or len(typed) > _MOST:
                    break
        click.echo()
    except OSError:
        pass
    return False


def _copied(path: Path, file: Path, content: bytes, ask: Callable[[str], Answer | None]) -> NoReturn:
    """Confirm, and make the content of the file the configuration; the old one stays as PATH.before. Raises OSError."""
    from nftguard import control, lastgood

    target = path.resolve()
    like = target.stat() if target.exists() else None
    new, old = (target.with_name(f".{target.name}.{kind}.{os.getpid()}") for kind in ("new", "before"))
    try:
        _write(new, content, like)
        if like:
            _write(old, target.read_bytes(), like)
        confirmed = ask("confirm")
        if confirmed is None or confirmed.exit:
            _end(confirmed)
        if like:
            old.rename(path.with_name(f"{path.name}.before"))
        new.rename(target)
        lastgood.settle(target.parent)
    except OSError:
        ask("rollback")  # nothing is left to undo where it was confirmed
        raise
    finally:
        for part in (new, old):
            part.unlink(missing_ok=True)
    told = f"{file} is {path} now" + (f", the old one is {path}.before" if like else "")
    applied = ask("apply")  # which finds it in force, and keeps it as what these files ask for
    if applied is None:
        _end(control.Answer(EX_FAILED, f"kept: {told}; but the daemon is gone: start it (systemctl start nftguard)"))
    _end(replace(applied, text=f"{'' if applied.exit else 'kept: '}{applied.text}; {told}"))


def _write(path: Path, content: bytes, like: os.stat_result | None) -> None:
    """Write a file to the disk, with the owner and the mode of another."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:  # noqa: PTH123
        if like:
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(like.st_mode) if like else 0o644)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def _end(answer: Answer | None, code: int | None = None) -> NoReturn:
    """Print the daemon's last word on it, and end: with its exit code, unless another is given."""
    text = answer.text if answer else _GONE
    code = answer.exit if answer and code is None else EX_FAILED
    with contextlib.suppress(OSError):  # the terminal is gone
        screen.say(text, err=code != 0)
    sys.exit(code)
