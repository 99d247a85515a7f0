"""The resolver's process: reads which names are wanted, asks, writes what it found, and ends when that file is gone.

It needs no privilege, and is trusted with nothing but its answers: the daemon reads them as an enemy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from nftguard import folder, state
from nftguard.resolver import entries
from nftguard.resolver.ask import Asker
from nftguard.resolver.book import Book, Limits, Question, Reply
from nftguard.wire.watch import NetworkWatch

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 16
"""Questions that are under way at a time."""
SETTLE = 0.2
"""Seconds from a wake-up to what follows it, so that what comes together is dealt with together."""
LOOK_EVERY = 5.0
"""Seconds from one look at hosts and resolv.conf to the next: behind links, they are not easily listened to."""
CONFIRM_EVERY = 60.0
"""Seconds from one file of answers to the next, where these only say that all is as it was."""


def run(names: Path, answers: Path, etc: Path, limits: Limits = Limits()) -> None:  # noqa: B008 - it is frozen
    """Look up what the file `names` lists, into the file `answers`, until it is removed.

    Raises UnavailableError where the file cannot be watched, and OSError where the network cannot, where `names` cannot
    be read, or `answers` cannot be written.
    """
    asyncio.run(_Server(names, answers, etc, limits).run())


class _Server:
    def __init__(self, names: Path, answers: Path, etc: Path, limits: Limits) -> None:
        self._names = names
        self._answers = answers
        self._book = Book(limits)
        self._watch = folder.Watch(names)
        self._network = NetworkWatch()
        self._asker = Asker(etc)
        self._woken = asyncio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, tuple[tuple[str, ...], str]] | None = None
        self._told_at = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for fd in (self._watch.fd, self._network.socket.fileno()):
            loop.add_reader(fd, self._woken.set)
        try:
            while self._take_names():
                await self._round()
        finally:
            for task in self._tasks:
                task.cancel()
            self._answers.unlink(missing_ok=True)

    def _take_names(self) -> bool:
        """Read what is wanted; False where the file is gone. While it is there, systemd would start another process."""
        with contextlib.suppress(ValueError):  # of no sense: the daemon writes it anew
            data = folder.read(self._names, entries.MAX_FILE)
            if data is None:
                return False
            self._book.want(entries.decode(data), _now())
        return True

    async def _round(self) -> None:
        """Ask, wait until something happens, and tell what is known by then."""
        changed = False
        while not changed:
            for question in self._book.take(_now()):
                task = asyncio.create_task(self._ask(question))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), min(LOOK_EVERY, self._book.wait(_now())))
            await asyncio.sleep(SETTLE)
            self._woken.clear()
            if self._network.read() | self._asker.renew():
                self._book.hurry(_now())
            changed = self._watch.changed()
            self._tell()

    async def _ask(self, question: Question) -> None:
        async with self._room:
            began = _now()
            try:
                reply = await self._asker.ask(question)
            except Exception as error:  # a reply that the library stumbles over costs this one alone
                reply = Reply(error=f"no answer that makes sense ({type(error).__name__})")
            self._book.learn(question, reply, began, _now())
            self._woken.set()

    def _tell(self) -> None:
        found = self._book.entries()
        told = {name: (entry.addresses, entry.error) for name, entry in found.items()}
        if told != self._told or _now() >= self._told_at + CONFIRM_EVERY:
            state.write(self._answers, entries.encode(found))
            self._told, self._told_at = told, _now()


def _now() -> float:
    """Give the time since the boot, in seconds: the daemon's clock, too, and no other leaps here."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
