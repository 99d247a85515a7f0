"""The one door to libnftables: `snapshot`, `check`, `apply`, each one transaction.

libnftables is not safe for threads: every call must come from the thread that made the object. The object is kept for
the life of the process: closing its netlink socket after a delete holds the kernel's commit lock for 16 to 36 ms (an
RCU grace period), and a new `nft` process pays that each time.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nftguard import nftjson, nftscript, nftset
from nftguard.errors import KernelError, NftguardError, NotPermittedError, UnavailableError
from nftguard.model import BRIDGE, FAMILY, OWNED, TABLE, Counter, Features, Set, Table
from nftguard.plan import AddMembers, Plan, Step, create
from nftguard.wire import netlink
from nftguard.wire.nfnl import Nfnl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_VERSION = re.compile(r'\{"nftables": \[\{"metainfo": \{"version": "([0-9.]+)"')
_LOOKS = 3  # how often to read again when somebody changes the ruleset meanwhile
_PROBE = f"{TABLE}-probe"
# What may be missing, as scripts that are only tried.
_OWNING = f"create table {FAMILY} {_PROBE} {{ flags owner, persist; }}\n"
_NOTING = f"""add chain {FAMILY} {_PROBE} probe
add set {FAMILY} {_PROBE} probe {{ typeof socket cgroupv2 level 1; size 1; flags dynamic, timeout; timeout 1s; }}
add rule {FAMILY} {_PROBE} probe update @probe {{ socket cgroupv2 level 1 }}
"""


class Kernel(Protocol):
    """What nftguard asks of the kernel; the real one is `Nftables`, and tests hold a fake to the same contract."""

    @property
    def features(self) -> Features:
        """What it can do for us."""
        ...

    @property
    def version(self) -> str:
        """The version of nft's library; empty as long as it has not said so."""
        ...

    def snapshot(self) -> Table | None:
        """Read our table; None where there is none. Raises KernelError."""
        ...

    def counters(self, families: Iterable[str]) -> dict[str, Counter]:
        """Read what the tables of these families have counted, and nothing else. Raises KernelError."""
        ...

    def check(self, table: Table) -> None:
        """Ask whether the kernel would take the table, without making it. Raises KernelError when not."""
        ...

    def apply(self, plan: Plan) -> None:
        """Apply the plan's steps, all or, raising KernelError, none of them; then what of its `late` can be had."""
        ...


class _Seen(NamedTuple):
    """A table as it was read at one generation of the ruleset; owners come and go without a new one."""

    generation: int
    flags: Mapping[str, frozenset[str]]
    table: Table


class Nftables:
    """The kernel of this network namespace, through libnftables. Raises UnavailableError where that is missing."""

    def __init__(self, context: Any = None, inherited: int | None = None) -> None:
        """Take a context that is open already, and the socket of an earlier process, to go on as the owner it was."""
        self._nft = context or connect()
        self.socket = _find_socket(inherited)
        """libnftables' own descriptor, whose other end is the owner of an owned table."""
        if inherited is not None:
            os.dup2(inherited, self.socket)
        self.nfnl = Nfnl()
        self.version = ""
        self._last: _Seen | None = None

    def snapshot(self) -> Table | None:
        """Read our table; None where there is none.

        What only a transaction changes is not read again where there was none since the last time.
        """
        found: Table | None = None
        for _ in range(_LOOKS):
            before = self.nfnl.generation()
            flags = {of: flags for of in (FAMILY, BRIDGE) if (flags := self.nfnl.flags(of)) is not None}
            last = self._last
            found = self._moved(last.table) if last and last[:2] == (before, flags) else self._read(flags)
            if before is not None and before == self.nfnl.generation():
                self._last = _Seen(before, flags, found) if found and not found.foreign else None
                break
        return found

    def _moved(self, table: Table) -> Table:
        """Read what packets and time change; the elements of dynamic sets are nobody's business."""
        timed = {
            name: nftset.fill(made, self.nfnl.members(name))
            for name, made in table.sets.items()
            if isinstance(made, Set) and made.timed
        }
        return replace(table, counters=self.counters(table.families), sets={**table.sets, **timed})

    def counters(self, families: Iterable[str]) -> dict[str, Counter]:
        """Read what the tables of these families have counted, and nothing else. Raises KernelError."""
        counted = {name: total for of in families for name, total in self.nfnl.counters(of).items()}
        return {name: Counter(name, *total) for name, total in counted.items()}

    def _read(self, flags: Mapping[str, frozenset[str]]) -> Table | None:
        tables = {of: self._table(of, found) for of, found in flags.items()}
        if not tables:
            return None
        found, *others = tables.values()
        for other in others:
            found = Table(
                {**found.chains, **other.chains},
                {**found.maps, **other.maps},
                {**found.sets, **other.sets},
                {**found.counters, **other.counters},
                found.flags,
                foreign=found.foreign | other.foreign | ({"other flags"} if other.flags != found.flags else set()),
            )
        return replace(found, families=frozenset(tables))

    def _table(self, of: str, flags: frozenset[str]) -> Table:
        table = f"table {of} {TABLE}"
        try:
            if flags and not flags <= self.features.flags:
                # This one is to be replaced: its counters are all that is wanted of it, and nft 1.0.6 lists no more.
                return Table(flags=flags, counters=nftjson.parse_counters(self._list(f"counters {table}")))
            # The elements of dynamic sets are left out: each costs 12 µs to print, and one that holds a control group
            # a walk through all of them (cgroupv2_get_path() in nft 1.0.6). Those of maps are then listed one by one,
            # since 1.0.6 lists those of all tables, or of one map; those of sets that are ours without it.
            self._nft.set_terse_output(True)
            try:
                found = nftjson.parse(self._list(table), of)
            finally:
                self._nft.set_terse_output(False)
            names = [name for name in found.maps if _NAME.fullmatch(name)]  # no other can be of our making
            maps = {name: nftjson.parse_map(self._list(f"map {of} {TABLE} {name}")) for name in names}
            sets = {
                name: nftset.fill(made, self.nfnl.members(name))
                for name, made in found.sets.items()
                if isinstance(made, Set)
            }
            return replace(found, flags=flags, maps={**found.maps, **maps}, sets={**found.sets, **sets})
        except UnicodeDecodeError:
            return Table(flags=flags, foreign=frozenset({"something with bytes that are no text"}))
        except nftjson.MalformedError as error:
            raise KernelError(f"list {table}", f"libnftables' reply is malformed: {error}") from None

    @cached_property
    def features(self) -> Features:
        """What this kernel and this nft can do for us, asked without changing anything.

        nft 1.0.6 takes `persist` for a syntax error, and a kernel refuses flags that it does not know. `owner` alone
        is of no use: such a table dies with its owner.
        """
        self.nfnl.flags()  # without privilege it says so; libnftables would print it
        if self._would(_OWNING + _NOTING):
            return Features(OWNED)
        flags = OWNED if self._would(_OWNING) else frozenset()
        return Features(flags, self._would(f"add table {FAMILY} {_PROBE}\n{_NOTING}"))

    def _would(self, script: str) -> bool:
        self._nft.set_dry_run(True)
        try:
            code, _, _ = self._nft.cmd(script)
        finally:
            self._nft.set_dry_run(False)
        return not code

    def close(self) -> None:
        """Close our own socket; libnftables' goes with the object."""
        self.nfnl.close()

    def _list(self, what: str) -> str:
        """List as JSON. Raises UnicodeDecodeError when there is something in it that is not UTF-8.

        On an interface name that is not, say, an assertion in libnftables' JSON ends this process, and every one after
        it (seen: nft 1.0.6). As plain text it comes out, and it is python's binding that cannot decode it.
        """
        for as_json in (False, True):
            self._nft.set_json_output(as_json)
            code, out, err = self._nft.cmd(f"list {what}")
            if code:
                raise _error(f"list {what}", err)
        if not self.version and (found := _VERSION.match(out)):
            self.version = found[1]
        return str(out)

    def check(self, table: Table) -> None:
        """Ask whether the kernel would take the table: it goes through the whole transaction and takes it back.

        By another name, since nobody but its owner may say anything of a table that has one.
        """
        text = nftscript.lines(create(table), _PROBE)
        self._nft.set_dry_run(True)
        try:
            self._run(text, f"build the {len(table.counters)} counted ports of a table {FAMILY} {TABLE}")
        finally:
            self._nft.set_dry_run(False)

    def apply(self, plan: Plan) -> None:
        """Apply the plan's steps, all or none of them; then what of its `late` can be had."""
        if not plan:
            return
        what = f"apply {len(plan)} changes to table {FAMILY} {TABLE}"
        if plan.steps:
            self._run(nftscript.lines(plan.steps), what)
        for name, group in groupby(plan.late, key=lambda step: step.name):
            steps = list(group)
            try:
                self._run(nftscript.lines(steps), f"fill set {name}")
            except KernelError:
                # A control group that has ended is missed at once, and not the others for it: whoever follows them will
                # ask for another pass.
                for step in steps:
                    for part in _singly(step):
                        with suppress(KernelError):
                            self._run(nftscript.lines([part]), f"fill set {name}")

    def _run(self, script: str, command: str) -> None:
        code, _, err = self._nft.cmd(script)
        if code:
            raise _error(command, err)


def _singly(step: Step) -> list[Step]:
    if not isinstance(step, AddMembers):
        return [step]
    return [AddMembers(step.name, {member: written}) for member, written in step.members.items()]


def connect() -> Any:
    """Open libnftables. Raises UnavailableError."""
    try:
        import nftables

        return nftables.Nftables()
    except ImportError:
        raise UnavailableError(
            "python's nftables module is missing; install the package python3-nftables, and run nftguard with the "
            "system's python3 (or a virtual environment with --system-site-packages)"
        ) from None
    except OSError as error:
        raise UnavailableError(f"libnftables cannot be loaded ({error}); install the package libnftables1") from None


def _find_socket(other: int | None) -> int:
    """Find the descriptor of the one netfilter socket that is open besides `other`; libnftables does not tell it."""
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):  # noqa: PTH115
                continue
        except FileNotFoundError:  # the listing's own descriptor
            continue
        with socket.socket(fileno=os.dup(int(entry))) as found:
            if int(entry) != other and (found.family, found.proto) == (socket.AF_NETLINK, netlink.NETLINK_NETFILTER):
                return int(entry)
    raise UnavailableError("libnftables opened no netlink socket; is /proc mounted?")


def _error(command: str, text: str) -> NftguardError:
    if os.strerror(errno.EPERM) in text:  # libnftables gives texts, not codes; the text is strerror()'s
        return NotPermittedError(command)
    return KernelError(command, _first(text))


def _first(text: str) -> str:
    """Take the reason and the line it is about out of libnftables' three lines for each error."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~\t")]
    return "; ".join(line.removeprefix("Error: ") for line in lines[:2]) or "no reason given"
