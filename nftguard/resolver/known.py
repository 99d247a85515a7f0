"""The daemon's end: says which names are wanted, reads what the resolver found, and keeps the last good answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, folder, state
from nftguard.errors import UnavailableError
from nftguard.resolver import entries
from nftguard.resolver.entries import MAX_NAMES, Entry
from nftguard.wording import lasting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LATE = 900.0
"""Seconds that an answer may be overdue before the resolver is taken for dead."""
EVERY = 1.0
"""Seconds from one look at the answers to the next, so that a resolver gone mad cannot keep the daemon busy."""
UNHEARD_EVERY = 30.0
"""The same where changes cannot be heard."""

_TOLD = 10  # problems told one by one
_SEE = "see `systemctl status nftguard-resolver.path nftguard-resolver.service`"


def boottime() -> float:
    """Give the time since the boot, in seconds: the one clock of both processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Names:
    """The host names that exceptions list, and their addresses.

    Nothing here waits, and nothing raises: what cannot be done is among `problems`, and what is known holds. When `fd`
    is readable, call `hear`; when `due`, call `read`.
    """

    def __init__(self, clock: Callable[[], float] = boottime, wall: Callable[[], float] = time.time) -> None:
        """Begin with what an earlier process kept."""
        self._clock, self._wall = clock, wall
        self._wanted = Path(bootscript.run_dir()) / "names"
        self._answers = Path(f"{bootscript.run_dir()}-resolver") / "answers.json"
        self._file = _file()
        self._names: tuple[str, ...] = ()
        self._left_out = 0
        self._known = self._saved = self._load()
        self._said: tuple[bytes, Mapping[str, Entry]] = (b"", {})
        self._seen: tuple[bytes | None, dict[str, Entry]] = (None, {})
        self._troubles: dict[str, str] = {}
        self._heard = False
        self._next = float("-inf")  # seconds on the monotonic clock
        self._watch: folder.Watch | None = None
        try:
            self._watch = folder.Watch(self._answers)
        except UnavailableError as error:
            self._troubles["watch"] = str(error)

    @property
    def fd(self) -> int | None:
        """The descriptor that tells of new answers; None where it cannot be had."""
        return self._watch.fd if self._watch else None

    def close(self) -> None:
        """Stop listening; what is wanted stays so, for the next process."""
        if self._watch:
            self._watch.close()

    def end(self) -> None:
        """Want nothing any more, without forgetting anything: the resolver ends. Raises OSError."""
        self._wanted.unlink(missing_ok=True)

    def want(self, names: Iterable[str]) -> None:
        """Say which names are wanted from now on, of which others are forgotten. To be called with every pass."""
        listed = sorted(set(names))
        self._names, self._left_out = tuple(listed[:MAX_NAMES]), len(listed[MAX_NAMES:])
        self._take()

    def hear(self) -> None:
        """Note that there may be new answers."""
        if self._watch:
            self._heard = self._watch.changed() or self._heard

    def due(self) -> float | None:
        """Give when, on the monotonic clock, `read` is to be called."""
        return self._next if self._names and (self._heard or not self._watch) else None

    def read(self) -> bool:
        """Read the answers, and tell whether `addresses` gives others than before."""
        return bool(self._names) and self._take()

    def addresses(self) -> dict[str, frozenset[str]]:
        """Give the addresses of every name that is wanted, both families; none where none was ever found."""
        return {name: frozenset(self._entry(name).addresses) for name in self._names}

    def problems(self) -> tuple[str, ...]:
        """Say in a sentence each what an administrator should know."""
        found = [text for name in self._names if (text := self._trouble(name))]
        if len(found) > _TOLD:
            found[_TOLD:] = [f"{len(found) - _TOLD} more names have problems like these"]
        if self._left_out:
            found.append(f"more than {MAX_NAMES} host names: {self._left_out} of them are not looked up")
        return (*self._troubles.values(), *found)

    def _entry(self, name: str) -> Entry:
        return self._known.get(name, Entry())

    def _take(self) -> bool:
        """Take in the answers that are there; then keep, and say, what has changed."""
        self._heard = False
        self._next = time.monotonic() + (EVERY if self._watch else UNHEARD_EVERY)
        before = self.addresses()
        answers, now = self._read(), self._clock()
        known: dict[str, Entry] = {}
        for name in self._names:
            old, new = self._entry(name), answers.get(name)
            if new and new.at is not None:
                known[name] = replace(new, at=min(new.at, now))
            else:  # it has had no answer: what was good here stays good
                known[name] = replace(old, error=new.error) if new else old
        self._known = known
        self._save()
        self._say()
        return self.addresses() != before

    def _read(self) -> dict[str, Entry]:
        self._troubles.pop("answers", None)
        try:
            data = folder.read(self._answers, entries.MAX_FILE) if self._names else None
            if data is None:
                return {}
            if data != self._seen[0]:
                self._seen = data, entries.decode(data)
            return self._seen[1]
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        except ValueError as error:
            reason = str(error)
        self._troubles["answers"] = f"{self._answers} {reason}; the last good answers hold"
        return {}

    def _say(self) -> None:
        """Write what is wanted, with what was good last, so that a new resolver goes on from there."""
        self._troubles.pop("wanted", None)
        try:
            if not self._names:
                self._wanted.unlink(missing_ok=True)
            elif not self._is_said():
                text = entries.encode({name: replace(self._entry(name), error="") for name in self._names})
                state.write(self._wanted, text)
                self._said = text.encode(), self._known
        except OSError as error:
            self._troubles["wanted"] = f"{self._wanted} cannot be written: {error.strerror}; names are not looked up"

    def _is_said(self) -> bool:
        text, known = self._said
        try:
            return folder.read(self._wanted, entries.MAX_FILE) == text and _gist(known) == _gist(self._known)
        except (OSError, ValueError):
            return False

    def _save(self) -> None:
        """Keep the answers for the next start, where they are others."""
        self._troubles.pop("file", None)
        if _gist(self._known) == _gist(self._saved):
            return
        shift = self._wall() - self._clock()  # the time since this boot means nothing after the next
        kept = {
            name: replace(entry, at=entry.at + shift, error="")
            for name, entry in self._known.items()
            if entry.at is not None
        }
        try:
            state.write(self._file, entries.encode(kept), 0o600)
        except OSError as error:
            self._troubles["file"] = f"{self._file} cannot be written: {error.strerror}; a restart forgets addresses"
        else:
            self._saved = self._known

    def _load(self) -> dict[str, Entry]:
        """Read what was kept; nothing where that does not make sense."""
        kept, now = _kept(), self._clock()
        shift = now - self._wall()
        return {
            name: replace(entry, at=min(entry.at + shift, now)) for name, entry in kept.items() if entry.at is not None
        }

    def _trouble(self, name: str) -> str:
        entry = self._entry(name)
        if not entry.addresses:
            error = entry.error or f"not looked up yet ({_SEE})"
            return f"{name}: {error}; it has no address, and nothing passes for it"
        age = self._clock() - (entry.at or 0.0)
        if entry.error:
            return f"{name}: {entry.error}; its last answer, of {lasting(age)} ago, holds"
        if age > entry.ttl + LATE:
            return f"{name}: not looked up for {lasting(age)} ({_SEE}); its last answer holds"
        return ""


def addresses() -> dict[str, frozenset[str]]:
    """Give the last good addresses of each name, for who only looks: as a daemon has kept them."""
    return {name: frozenset(entry.addresses) for name, entry in _kept().items()}


def _kept() -> dict[str, Entry]:
    try:
        return entries.decode(folder.read(_file(), entries.MAX_FILE) or b"{}")
    except (OSError, ValueError):
        return {}


def _file() -> Path:
    return Path(bootscript.state_dir()) / "names.json"


def _gist(found: Mapping[str, Entry]) -> dict[str, tuple[tuple[str, ...], float | None]]:
    """Give what is worth writing: the addresses, and the hour in which they were confirmed."""
    return {name: (entry.addresses, entry.at and entry.at // 3600) for name, entry in found.items()}
