"""One look-up: the hosts file first, then the servers of resolv.conf; both as they are now.

Names are full names: the search list of resolv.conf is not used, so that what a name means does not depend on the
network that the host is on. dnspython takes long to import: only the resolver's own process does.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from nftguard.resolver.book import Reply
from nftguard.resolver.entries import MAX_FILE, usable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nftguard.resolver.book import Question

HOSTS_TTL = 60.0
"""Seconds that a line of the hosts file holds; a change of the file is seen before."""
PATIENCE = 10.0
"""Seconds for one question, however many servers are tried."""

_TYPES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}


class Asker:
    """Asks as the files in `etc` say; `renew` reads them again where they have changed."""

    def __init__(self, etc: Path) -> None:
        self._files = (etc / "hosts", etc / "resolv.conf")
        self._seen: list[tuple[int, ...]] = []
        self._hosts: dict[str, set[str]] = {}
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._backend = dns.asyncbackend.get_backend("asyncio")
        self.renew()

    def renew(self) -> bool:
        """Read the files again if they are others now, and tell whether they are."""
        seen = [_version(path) for path in self._files]
        if seen == self._seen:
            return False
        self._seen = seen
        hosts, servers = self._files
        self._hosts = _read_hosts(hosts)
        try:
            self._resolver = dns.asyncresolver.Resolver(str(servers))
        except (dns.exception.DNSException, OSError, ValueError):  # none named, or none that makes sense
            self._resolver = None
        return True

    async def ask(self, question: Question) -> Reply:
        """Ask once. Whatever goes wrong is told in the reply."""
        if (listed := self._hosts.get(question.name.lower())) is not None:
            return _reply(question, listed, HOSTS_TTL, loopback=True)
        if self._resolver is None:
            return Reply(error="resolv.conf names no server")
        try:
            answer = await self._resolver.resolve(
                dns.name.from_text(question.name),  # to its root, so that no search list is used
                _TYPES[question.family],
                raise_on_no_answer=False,
                lifetime=PATIENCE,
                backend=self._backend,
            )
        except dns.resolver.NXDOMAIN:
            return Reply(none="there is no such name")
        except dns.exception.Timeout:
            return Reply(error="no server answers")
        except dns.resolver.NoNameservers as error:
            return Reply(error=_refusal(error))
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            return Reply(error=f"no answer that makes sense ({type(error).__name__})")
        found = [record.address for record in answer.rrset or ()]
        return _reply(question, found, float(answer.chaining_result.minimum_ttl), loopback=False)


def _reply(question: Question, found: Iterable[str], ttl: float, *, loopback: bool) -> Reply:
    """Take what can be used. From a server, no address of the host itself: blocklists answer so, and attackers."""
    addresses = [address for address in map(ipaddress.ip_address, found) if address.version == question.family]
    good = frozenset(str(one) for one in addresses if usable(one) and (loopback or not one.is_loopback))
    if addresses and not good:
        return Reply(error=f"{addresses[0]} is no host's address")
    return Reply(good, ttl, none="" if good else "it has no address")


def _refusal(error: dns.resolver.NoNameservers) -> str:
    """Say what the last server answered, or that none did."""
    responses = [entry[4] for entry in error.kwargs["errors"] if entry[4] is not None]
    return f"the server answers {dns.rcode.to_text(responses[-1].rcode())}" if responses else "no server answers"


def _version(path: Path) -> tuple[int, ...]:
    """Tell one content of a file from the next, through links."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read_hosts(path: Path) -> dict[str, set[str]]:
    """Read a hosts file: hosts(5). What is no address is passed over, as the C library does."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE).decode(errors="replace")
    except OSError:
        return {}
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            written = str(ipaddress.ip_address(address))
        except ValueError:
            continue
        for name in names:
            found.setdefault(name.lower(), set()).add(written)
    return found
