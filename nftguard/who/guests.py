"""Who sent what this host only forwards: a container or the peer of a WireGuard tunnel, by the address of the packet.

A container is found by the addresses of its network namespace, which everybody may read in /proc/PID/net of a process
in it (linux/fs/proc/proc_net.c asks for no ptrace access, unlike /proc/PID/ns). It is a guess: a guest that may make
packets of its own can take any address; where two have the same, neither is named.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nftguard.who import processes
from nftguard.who.culprit import Culprit
from nftguard.who.owners import owner
from nftguard.wire.wireguard import Tunnels

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.who.cgroups import Tree
    from nftguard.who.processes import Process
    from nftguard.wire.nflog import Attempt

_FRESH = 30.0  # seconds; sooner when containers have come or gone
_PAUSE = 1.0  # seconds between two looks at all containers, at least
_SHARE = 20  # such looks may take one part in so many of the time
_CONTAINERS = 1024  # that are looked at
_ADDRESSES = 1024  # of one of them
_MARK = "net/dev"  # in /proc/PID: each network namespace has files of its own
_MOST = 1 << 18  # bytes of a list of addresses: that of a router with the routes of the whole Internet is not read

# "|-- 172.17.0.2", and in the line below "/32 host LOCAL"
_LOCAL = re.compile(rb"\|-- ([0-9.]{7,15})\n\s+/32 host LOCAL")


class _Space(NamedTuple):
    """A network namespace: its number, and a process in it by which its addresses are read anew."""

    number: int
    process: Process


class Guests:
    """The containers of this host by their addresses, and its tunnels. `tree` None: control groups are not known."""

    def __init__(self, tree: Tree | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._clock = clock
        self._tunnels = Tunnels(clock)
        self._found: dict[str, dict[int, _Space]] = {}  # by address, then by the number of the namespace
        self._names: dict[int, set[str]] = {}  # the containers of a namespace
        self._changes = -1
        self._look_at = self._until = clock()

    def culprit(self, attempt: Attempt) -> Culprit:
        """Tell who made an attempt that came in by an interface."""
        name = self.guest(attempt.inbound, attempt.source)
        return Culprit(
            container=name, known_by="address" if name else "", source=attempt.source, interface=attempt.inbound
        )

    def guest(self, interface: str, source: str) -> str:
        """Name the guest, as "docker:0123456789ab" or "wireguard:wg0 peer KEY at ADDRESS"; empty where it is not known.

        KEY is the public one, and ADDRESS where the tunnel's packets come from.
        """
        if peer := self._tunnels.peer(interface, source):
            return f"wireguard:{interface} peer {peer.key}" + (f" at {peer.endpoint}" if peer.endpoint else "")
        if self._tree is None:
            return ""
        self._refresh(self._tree)
        spaces = self._found.get(source, {})
        if len(spaces) != 1:
            return ""
        (space,) = spaces.values()
        if source not in _addresses(space):  # it has ended, or the address has gone to another
            self._until = self._clock()
            return ""
        return _together(self._names[space.number])

    def _refresh(self, tree: Tree) -> None:
        now = self._clock()
        tree.read()
        if now < self._look_at or (now < self._until and tree.changes == self._changes):
            return
        self._until, self._changes = now + _FRESH, tree.changes
        self._found, self._names = {}, {}
        own = Path("/proc/thread-self", _MARK).stat().st_ino
        heads: dict[str, Process] = {}
        for path in tree.paths():
            name = owner(path).container
            if name and name not in heads and (head := processes.head(tree.directory(path))):
                heads[name] = head
            if len(heads) >= _CONTAINERS:
                break
        for name, process in heads.items():
            space = _space(process)
            if space is None or space.number == own:  # it shares the host's network: then nothing of it is forwarded
                continue
            if space.number not in self._names:
                for address in _addresses(space):
                    self._found.setdefault(address, {})[space.number] = space
            self._names.setdefault(space.number, set()).add(name)
        ended = self._clock()
        self._look_at = ended + max(_PAUSE, _SHARE * (ended - now))


def _together(names: set[str]) -> str:
    """Name what shares one network: a container, or the pod that several belong to."""
    if len(names) == 1:
        return next(iter(names))
    pods = {name.partition("/")[0] for name in names}
    return pods.pop() if len(pods) == 1 and all(name.startswith("kubernetes:") for name in names) else ""


def _number(folder: int) -> int:
    """Give a number that stands for the network namespace of an opened process: the inode of a file in it."""
    return os.stat(_MARK, dir_fd=folder).st_ino


def _space(process: Process) -> _Space | None:
    try:
        with processes.opened(process) as folder:
            return _Space(_number(folder), process)
    except OSError:
        return None


def _addresses(space: _Space) -> set[str]:
    """List the addresses of a namespace, as `ipaddress` writes them; none where it cannot be seen any more."""
    try:
        with processes.opened(space.process) as folder:
            if _number(folder) != space.number:
                return set()
            return parse(processes.read("net/fib_trie", folder, _MOST), processes.read("net/if_inet6", folder, _MOST))
    except OSError:
        return set()


def parse(fib_trie: bytes, if_inet6: bytes) -> set[str]:
    """Read the addresses out of /proc/net/fib_trie and if_inet6 (proc_pid_net(5)), those of the loopback left out."""
    found = [match[1].decode() for match in _LOCAL.finditer(fib_trie)]
    found += [line[:32].decode(errors="replace") for line in if_inet6.split(b"\n")]
    addresses: set[str] = set()
    for text in found:
        try:
            address = ipaddress.ip_address(bytes.fromhex(text) if len(text) == 32 else text)
        except ValueError:
            continue
        if not address.is_loopback and len(addresses) < _ADDRESSES:
            addresses.add(str(address))
    return addresses
