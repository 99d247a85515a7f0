"""Who made an attempt: from the packet, the kernel's note of its control group, and the socket, to the culprit.

What is not known stays empty. Nothing here waits, and what costs more than a look-up has a budget, so that a flood of
attempts is told with less, not later.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from nftguard import policy
from nftguard.bucket import Bucket, Buckets
from nftguard.errors import UnavailableError
from nftguard.model import Hook, Protocol
from nftguard.names import clean
from nftguard.who import processes
from nftguard.who.cgroups import Tree, mounted
from nftguard.who.culprit import Culprit
from nftguard.who.guests import Guests
from nftguard.who.owners import owner
from nftguard.who.proxies import Proxies
from nftguard.who.users import Users
from nftguard.wire import sockdiag

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from nftguard.who.clients import Suspicion
    from nftguard.wire.nflog import Attempt
    from nftguard.wire.nfnl import Nfnl

_CAP_SYS_PTRACE = 19  # linux/include/uapi/linux/capability.h
_KEY = 16  # bytes: the control group's id, the source port, padded to four, and the sequence number
_CANDIDATES = 8  # that are named
_FIRST, _RECENT = 4, 64  # control groups of a user that are asked about: at first, and at most
_SHARE = 10  # a listing of all noted attempts may take one part in so many of the time


class Finding(NamedTuple):
    """Who made an attempt, and which client of that program is behind it, where that is a question at all."""

    culprit: Culprit
    suspicion: Suspicion | None = None


class Attribution:
    """Finds out who made an attempt. `fd` is for a selector; call `read` whenever it is readable."""

    def __init__(self, nfnl: Nfnl) -> None:
        self._nfnl = nfnl
        self._users = Users()
        self._proxies = Proxies()
        # What costs more than a question or two: how often, for whom, and how much of the time that repairs need, too.
        self._budget = Buckets(total=(100, 200), each=(20, 40))
        self._time = Bucket(rate=0.1, burst=0.02)  # seconds
        self._recent: dict[int, list[int]] = {}  # user id to control groups, the last one first
        self._list_at = 0.0
        self._tree: Tree | None = None
        self._guests = Guests(None)
        self.problem = ""
        """Why units cannot be told; empty where they can."""
        self.exact = _capable(_CAP_SYS_PTRACE)
        """Whether to look which process has a socket open."""

    def begin(self) -> None:
        """Follow the control groups from now on. It looks at every one of them, so the rules come before it."""
        if self._tree is None:
            try:
                self._tree, self.problem = Tree(mounted()), ""
            except UnavailableError as error:
                self.problem = str(error)
            self._guests = Guests(self._tree)

    @property
    def tree(self) -> Tree | None:
        """The control groups; None where they are not, or cannot be, followed."""
        return self._tree

    @property
    def fd(self) -> int | None:
        """The descriptor that is readable when control groups came or went; None where they cannot be followed."""
        return self._tree.fd if self._tree else None

    def read(self) -> None:
        """Take in which control groups came and went."""
        if self._tree:
            self._tree.read()
            self.problem = self._tree.problem

    def due(self) -> float | None:
        """Give when, on the monotonic clock, `tick` is to be called."""
        return self._proxies.due()

    def tick(self) -> None:
        """Look at what clients do while there is no attempt."""
        self._proxies.tick()

    def close(self) -> None:
        """Stop following."""
        if self._tree:
            self._tree.close()

    def explain(self, attempts: list[Attempt], *, fresh: bool = True) -> list[Finding]:
        """Tell who made each of these attempts, which were just read; `fresh`: and were sent just before."""
        now = time.monotonic()
        noted = self._noted([attempt for attempt in attempts if attempt.hook is Hook.OUTPUT])
        return [
            self._local(attempt, noted.get(_mark(attempt), 0), now, fresh)
            if attempt.hook is Hook.OUTPUT
            else self._passing(attempt)
            for attempt in attempts
        ]

    def _passing(self, attempt: Attempt) -> Finding:
        """Tell who made an attempt that came in by an interface: sources can be made up without end."""
        with self._allowed((attempt.inbound, attempt.source)) as thorough:
            if thorough:
                return Finding(self._guests.culprit(attempt))
        return Finding(Culprit(source=attempt.source, interface=attempt.inbound))

    @contextmanager
    def _allowed(self, key: Hashable) -> Iterator[bool]:
        """Whether there is time to look closely; what it takes is counted."""
        began = time.monotonic()
        yield self._time.left(began) > 0 and self._budget.take(key, began)
        self._time.spend(time.monotonic() - began)

    def _local(self, attempt: Attempt, cgroup: int, now: float, fresh: bool) -> Finding:
        # At first, where it can be: what there is to be seen of a program's clients fades within milliseconds.
        suspicion = self._proxies.attempted(cgroup, now) if fresh and cgroup else None
        known_by = "kernel" if cgroup else ""
        program: processes.Program | None = None
        details, group = processes.Details(), processes.Group()
        with self._allowed((attempt.uid, cgroup)) as thorough:
            sock = sockdiag.find(attempt) if thorough else None
            if sock and not cgroup:
                cgroup, known_by = sock.cgroup, "socket" if sock.cgroup else ""
                suspicion = self._proxies.attempted(cgroup, now) if fresh and cgroup else None
            elif sock and sock.cgroup != cgroup:
                sock = None  # another's, with the same addresses and ports
            path = self._tree.path(cgroup) if self._tree and cgroup else ""
            if thorough and path and self._tree:
                group = processes.of(self._tree.directory(path))
                program = self._program(attempt, group, sock)
                details = processes.details(program.process) if program and program.process else details
        owns = owner(path)
        culprit = Culprit(
            uid=attempt.uid,
            user=self._users.name(attempt.uid) if attempt.uid is not None else "",
            cgroup=clean(path),
            unit=owns.unit,
            user_unit=owns.user_unit,
            session=owns.session,
            container=owns.container,
            program=program.name if program else "",
            pid=program.process.pid if program and program.process else None,
            exe=details.exe,
            cmdline=details.cmdline,
            parent=details.parent,
            # Of more processes than were looked at, the first few are no better than any.
            candidates=tuple(map(str, group.of(attempt.uid)[:_CANDIDATES])) if group.complete and not program else (),
            known_by=known_by if path else "",
        )
        return Finding(culprit, suspicion)

    def _program(
        self, attempt: Attempt, group: processes.Group, sock: sockdiag.Socket | None
    ) -> processes.Program | None:
        if sock is None:
            return None  # whoever had it may have ended with it

        def still_open() -> bool:
            again = sockdiag.find(attempt)
            return again is not None and again.cookie == sock.cookie

        if self.exact:
            return processes.holder(group, sock.inode)
        return processes.certain(group, attempt.uid, still_open)

    def _noted(self, attempts: list[Attempt]) -> dict[bytes, int]:
        """Ask the kernel which control groups it noted with these packets: their marks to the groups' ids.

        First about those that the same user's last attempts came from; then, for what is left, by listing them all, or
        where that was done just now, about more of that user's. Only TCP's sequence number tells attempts from the same
        port apart: with another protocol it takes a listing to know that there is only one.
        """
        tcp = [attempt for attempt in attempts if attempt.protocol is Protocol.TCP]
        found = self._asked(tcp, 0, _FIRST)
        began = time.monotonic()
        if left := [attempt for attempt in attempts if _mark(attempt) not in found]:
            if began >= self._list_at:
                found |= _unique(key for key in self._nfnl.elements(policy.ATTEMPTS) if len(key) == _KEY)
                ended = time.monotonic()
                self._list_at = ended + _SHARE * (ended - began)
            else:
                found |= self._asked([attempt for attempt in left if attempt.protocol is Protocol.TCP], _FIRST, _RECENT)
        for attempt in attempts:
            cgroup = found.get(_mark(attempt), 0)
            if cgroup and attempt.uid is not None:
                others = [one for one in self._recent.get(attempt.uid, []) if one != cgroup]
                self._recent[attempt.uid] = [cgroup, *others[: _RECENT - 1]]
        if len(self._recent) > 1024:
            self._recent.clear()
        return found

    def _asked(self, attempts: list[Attempt], first: int, end: int) -> dict[bytes, int]:
        keys = {
            struct.pack("=Q", cgroup) + _mark(attempt)
            for attempt in attempts
            if attempt.uid is not None
            for cgroup in self._recent.get(attempt.uid, ())[first:end]
        }
        return _unique(self._nfnl.holds(policy.ATTEMPTS, keys) & keys)


def _unique(keys: Iterable[bytes]) -> dict[bytes, int]:
    """Take keys apart into mark and control group; a mark that several control groups have is nobody's."""
    found: dict[bytes, int] = {}
    for key in keys:
        mark, cgroup = key[8:], struct.unpack_from("=Q", key)[0]
        found[mark] = cgroup if found.get(mark, cgroup) == cgroup else 0
    return found


def _mark(attempt: Attempt) -> bytes:
    """Give what the key of a noted attempt holds besides the control group: `model.Key.ATTEMPT`."""
    return struct.pack("!HxxI", attempt.source_port, attempt.sequence)


def _capable(capability: int) -> bool:
    """Whether this process has a capability: capabilities(7), proc_pid_status(5)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        line = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) & 1 << capability) and os.access("/proc/1/fd", os.R_OK, effective_ids=True)
