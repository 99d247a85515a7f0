"""Canaries through a real kernel: stopped and counted, or seen at the other end; and how one is known."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from nftguard import canary
from nftguard.attempts.ledger import Ledger, Moment, Total
from nftguard.canary import ADDRESSES, Canary, Fate, is_canary, prove
from nftguard.model import Hook, Protocol
from nftguard.reconcile import reconcile
from nftguard.wire.nflog import Attempt
from tests.examples import table_of
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nftguard.kernel import Nftables
    from nftguard.wire.nfnl import Nfnl

ONE = Attempt("mail", Hook.OUTPUT, Protocol.TCP, "10.0.0.1", 9, "192.0.2.1", 25, ttl=1)
SENTINEL, NOBODY = 99, 65534


class Wire:
    """The far end of the uplink: what arrives there."""

    def __init__(self, far: Namespace) -> None:
        with far.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
        self._socket.settimeout(10)

    def canaries(self) -> list[tuple[int, int]]:
        """Send one that passes over each family, and give TTL and port of all that came before these."""
        for destination in ("192.0.2.1", "2001:db8::1"):
            assert not Canary(Protocol.UDP, destination, SENTINEL, 0).send()
        found: list[tuple[int, int]] = []
        while found.count((1, SENTINEL)) < 2:
            data, address = self._socket.recvfrom(4096)
            if b"nftguard verify" in data and address[2] != socket.PACKET_OUTGOING:  # no answer that quotes it
                start, ttl = (40, data[7]) if data[0] >> 4 == 6 else (20, data[8])
                found.append((ttl, int.from_bytes(data[start + 2 : start + 4])))
        return [one for one in found if one != (1, SENTINEL)]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(netns: Namespace) -> Iterator[Wire]:
    """A way to the world, with somebody who looks at what comes."""
    far = Namespace()
    connect(netns, far, "uplink", 1)
    mac = far.run("ip", "-brief", "link", "show", "uplink-far").stdout.split()[2]
    for way, family in (("10.0.1.2", "-4"), ("fd00:1::2", "-6")):
        netns.run("ip", family, "route", "add", "default", "via", way)
        # To ask for it takes a second while the link is new.
        netns.run("ip", "neighbour", "replace", way, "lladdr", mac, "dev", "uplink", "nud", "permanent")
    wire = Wire(far)
    yield wire
    wire.close()
    far.close()


def bird(
    protocol: Protocol = Protocol.TCP, destination: str = "192.0.2.1", port: int = 25, uid: int = NOBODY
) -> Canary:
    return Canary(protocol, destination, port, uid)


def test_a_canary_is_known_by_its_destination_and_its_ttl() -> None:
    documented = ("192.0.2.1", "192.0.2.255", "198.51.100.7", "203.0.113.9", "2001:db8:ffff::1", "3fff:fff::1")
    assert all(is_canary(replace(ONE, destination=address)) for address in documented)
    real = ("192.0.3.1", "198.51.101.1", "203.0.112.255", "2001:db9::1", "4000::1", "::ffff:192.0.2.1", "10.0.0.2")
    assert not any(is_canary(replace(ONE, destination=address)) for address in real)
    assert not is_canary(replace(ONE, ttl=2))
    assert not is_canary(replace(ONE, ttl=64))
    assert not is_canary(replace(ONE, hook=Hook.FORWARD)), "what guests send is none of ours"
    assert all(is_canary(replace(ONE, destination=address)) for listed in ADDRESSES.values() for address in listed)


@pytest.mark.parametrize("settings", ['action = "drop"', 'action = "reject"', 'connections = "new"'])
def test_what_is_blocked_is_stopped_and_counted_and_nothing_leaves(kernel: Nftables, wire: Wire, settings: str) -> None:
    """Each protocol over each family; the counter has risen by exactly what was sent."""
    protocols = [one for one in Protocol if "new" not in settings or one is not Protocol.UDP]
    names = ", ".join(f'"{one}"' for one in protocols)
    text = f'[[block]]\nname = "mail"\nports = [25, "6000-7000"]\nprotocols = [{names}]\n{settings}\n'
    reconcile(kernel, table_of(text))
    for protocol, destination in product(protocols, ("192.0.2.1", "2001:db8::1")):
        one = bird(protocol, destination)
        assert prove(kernel.nfnl, one, f"mail.output.{protocol}.25") is Fate.PROVEN
        wide = replace(one, port=6500)
        assert prove(kernel.nfnl, wide, f"mail.output.{protocol}.6000-7000") is Fate.PROVEN
    live = kernel.snapshot()
    assert live
    assert {counter.packets for counter in live.counters.values()} == {2}
    assert wire.canaries() == []


def test_what_is_not_blocked_is_told_and_goes_no_further_than_the_next_router(kernel: Nftables, wire: Wire) -> None:
    reconcile(kernel, table_of('[[block]]\nname = "mail"\nports = [25]\n'))
    protocols = [(protocol, destination) for protocol in Protocol for destination in ("192.0.2.1", "2001:db8::1")]
    for protocol, destination in protocols:
        assert prove(kernel.nfnl, bird(protocol, destination, 26), "mail.output.tcp.25") is Fate.PASSED
    assert wire.canaries() == [(1, 26)] * len(protocols)


def test_a_drop_that_somebody_turned_into_accept_is_found(kernel: Nftables, netns: Namespace, wire: Wire) -> None:
    """The chain still counts, so that a look at the counter alone would be content."""
    reconcile(kernel, table_of('[[block]]\nname = "mail"\nports = [25]\n'))
    assert prove(kernel.nfnl, bird(), "mail.output.tcp.25") is Fate.PROVEN
    netns.nft(
        "flush chain inet nftguard mail.output.tcp\n"
        'add rule inet nftguard mail.output.tcp counter name tcp dport map @mail.output.tcp accept comment "drop"\n'
    )
    assert prove(kernel.nfnl, bird(), "mail.output.tcp.25") is Fate.PASSED
    assert kernel.nfnl.counter("mail.output.tcp.25") == (2, 2 * bird().size)
    assert wire.canaries() == [(1, 25)]


def test_the_merit_of_another_program_is_not_ours(kernel: Nftables, netns: Namespace, wire: Wire) -> None:
    reconcile(kernel, table_of('[[block]]\nname = "mail"\nports = [25]\n'))
    netns.nft("table inet other { chain out { type filter hook output priority -10; tcp dport 25 drop; }; }")
    assert prove(kernel.nfnl, bird(), "mail.output.tcp.25") is Fate.UNCOUNTED
    assert prove(kernel.nfnl, bird(), "no.such.counter.25") is Fate.UNCOUNTED
    assert wire.canaries() == []


class Counters:
    """In the place of the kernel: a counter that rises by these steps, one for each canary."""

    def __init__(self, *steps: tuple[int, int]) -> None:
        self.totals = [(0, 0)]
        for packets, size in steps:
            self.totals += [(self.totals[-1][0] + packets, self.totals[-1][1] + size)] * 2

    def counter(self, name: str) -> tuple[int, int]:  # noqa: ARG002 - the signature of Nfnl
        return self.totals.pop(0) if len(self.totals) > 1 else self.totals[0]


SIZE = bird().size


@pytest.mark.parametrize(
    ("steps", "fate"),
    [
        ([(1, SIZE)], Fate.PROVEN),
        ([(3, SIZE + 80), (1, SIZE)], Fate.PROVEN),
        ([(2, SIZE + 40)] * 8, Fate.PROVEN),
        ([(1, 40)] * 8, Fate.UNCOUNTED),
        ([(2, 80), (1, 40), (0, 0)] * 3, Fate.UNCOUNTED),
        ([(0, 0)] * 8, Fate.UNCOUNTED),
        ([(-5, -200), (1, SIZE)], Fate.PROVEN),
    ],
    ids=["alone", "alone the second time", "never alone", "another's alone", "others' alone", "nothing", "set back"],
)
def test_the_packets_of_others_are_not_taken_for_the_canary(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int]], fate: Fate
) -> None:
    monkeypatch.setattr(Canary, "send", lambda _: True)
    counters: Nfnl = Counters(*steps)  # type: ignore[assignment]
    assert prove(counters, bird(), "mail.output.tcp.25") is fate


def test_it_is_sent_as_the_user_and_group_that_it_is_given(kernel: Nftables, netns: Namespace, wire: Wire) -> None:
    netns.nft(
        "table inet other { chain out { type filter hook output priority 0;"
        f"meta skuid {NOBODY} meta skgid {NOBODY} tcp dport 25 drop; }}; }}"
    )
    assert canary.may_be(NOBODY)
    assert bird().send()
    assert not bird(uid=0).send()
    assert wire.canaries() == [(1, 25)]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 6) as sock:
        assert sock, "who sent is himself again"
    assert kernel.nfnl.counter("mail.output.tcp.25") is None


def test_where_there_is_no_way_that_is_said(kernel: Nftables) -> None:
    assert kernel
    with pytest.raises(OSError, match="unreachable"):
        bird().send()


def test_what_is_absorbed_is_told_at_once_and_never_twice() -> None:
    """Also where the counter was read before it rose, and where it ends or begins anew in between."""
    at, now = "mail.output.tcp.25", Moment(1000, 1_000_000)
    one = replace(ONE, size=60)
    real = replace(one, destination="10.0.0.2", ttl=64)
    ledger = Ledger({at: Total(5, 300)})
    ledger.absorb(one, at)
    assert ledger.settle({at: Total(5, 300)}, now) == []
    assert ledger.settle({at: Total(6, 360)}, now) == []
    assert ledger.told == {at: Total(6, 360)}
    ledger.open(real, at, None, now)
    ledger.absorb(one, at)
    summary, rest = ledger.settle({at: Total(9, 540)}, now, every=True)
    assert (summary.packets, summary.attempts) == (1, 1)
    assert (rest.packets, rest.bytes, rest.account) == (1, 60, 0), "one more was counted, and is no canary"
    ledger.absorb(one, at)
    assert not ledger.rebase({at: Total(10, 600)})
    assert ledger.finish({at: Total(10, 600)}, now) == []
    assert ledger.told == {}
