"""What the kernel holds of a set, read in binary: the same text that nft itself lists."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard import nftset
from nftguard.errors import KernelError
from nftguard.model import Counter, Set
from nftguard.nftset import CATCHALL, END, Element

if TYPE_CHECKING:
    from nftguard.kernel import Nftables
    from tests.netns import Namespace

PORT = ("inet_proto", "inet_service")
TO4 = Set("s", (*PORT, "ipv4_addr"), frozenset({"tcp . 25 . 10.0.0.0/8", "dccp . 1 . 10.0.0.1"}), timed=True)
SETS = {
    "users": Set("s", ("uid",), frozenset({"0", "104", "4294967294"})),
    "nothing": Set("s", ("gid",)),
    "IPv4": Set("s", ("ipv4_addr",), frozenset({"10.0.0.0/8", "192.0.2.1", "192.0.2.7-192.0.2.9", "255.0.0.0/8"})),
    "what meets": Set("s", ("ipv4_addr",), frozenset({"0.0.0.0/2", "64.0.0.0", "128.0.0.0/1"})),
    "all of IPv4": Set("s", ("ipv4_addr",), frozenset({"0.0.0.0/0"})),
    "IPv6": Set("s", ("ipv6_addr",), frozenset({"2001:db8::/32", "fd00::7", "ff00::/8", "::ffff:192.0.2.1"})),
    "all of IPv6": Set("s", ("ipv6_addr",), frozenset({"::/0"})),
    "interfaces": Set("s", ("ifname",), frozenset({"eth0", "eth1", "wg*", "a", "exactly-fifteen"})),
    "one for a while": Set("s", (*PORT, "uid"), frozenset({"tcp . 587 . 104", "udp . 53 . 0"}), timed=True),
    "some for a while": TO4,
    "networks for a while": Set("s", (*PORT, "ipv6_addr"), frozenset({"sctp . 65535 . fd00::/8"}), timed=True),
    "ports for a while": Set("s", PORT, frozenset({"tcp . 587", "99 . 1"}), timed=True),
}  # fmt: skip


def make(netns: Namespace, made: Set) -> None:
    flags = ", ".join(["interval"] * made.interval + ["timeout"] * made.timed)
    elements = ", ".join(
        (f'"{element}"' if made.types == ("ifname",) else element) + " timeout 1h" * made.timed
        for element in made.elements
    )
    netns.nft(
        f"add table inet nftguard\nadd set inet nftguard s {{ type {' . '.join(made.types)};"
        f"{f' flags {flags};' if flags else ''} }}\n"
        + (f"add element inet nftguard s {{ {elements} }}" if elements else "")
    )


@pytest.mark.parametrize("made", SETS.values(), ids=SETS)
def test_a_set_comes_back_as_it_was_written(netns: Namespace, kernel: Nftables, made: Set) -> None:
    make(netns, made)
    found = nftset.fill(Set("s", made.types, timed=made.timed), kernel.nfnl.members("s"))
    assert found == made
    assert found.left.keys() == (made.elements if made.timed else set())
    assert all(3590 <= left <= 3600 for left in found.left.values())


ODD = {
    "a comment": ("type ipv4_addr; flags interval;", '192.0.2.1 comment "x"'),
    "a counter": ("type uid; counter;", "104"),
    "all else": ("type uid;", "*"),
}


@pytest.mark.parametrize(("declared", "elements"), ODD.values(), ids=ODD)
def test_what_nftguard_never_writes_is_foreign(
    netns: Namespace, kernel: Nftables, declared: str, elements: str
) -> None:
    netns.nft(f"add table inet nftguard\nadd set inet nftguard s {{ {declared} }}")
    netns.nft(f"add element inet nftguard s {{ {elements} }}")
    kind = declared.split()[1].rstrip(";")
    assert nftset.fill(Set("s", (kind,)), kernel.nfnl.members("s")).foreign == "elements with more than a key"


def test_what_is_malformed_is_foreign_or_a_difference() -> None:
    made = Set("s", ("ipv4_addr",))
    for odd in (Element(b""), Element(b"123"), Element(bytes(5), flags=END), Element(bytes(4), flags=CATCHALL)):
        assert nftset.fill(made, [odd]).foreign
    assert nftset.fill(Set("s", ("mark",)), []).foreign == "type mark"
    assert nftset.fill(Set("s", ()), []).foreign
    name = nftset.fill(
        Set("s", ("ifname",)), [Element(b"\xff\xfe" + bytes(14)), Element(b"\xff\xff" + bytes(14), flags=END)]
    )
    assert all(element.isascii() and element.startswith("\\xff") for element in name.elements)


@given(
    types=st.sampled_from([made.types for made in SETS.values()]),
    found=st.lists(st.builds(Element, st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 7))),
)
def test_whatever_comes_it_is_read(types: tuple[str, ...], found: list[Element]) -> None:
    made = nftset.fill(Set("s", types), found)
    assert made.foreign or made.elements or all(element.flags for element in found)


def test_a_set_that_is_gone_is_an_error_and_not_an_empty_one(netns: Namespace, kernel: Nftables) -> None:
    netns.nft("add table inet nftguard")
    with pytest.raises(KernelError, match="list set s"):
        kernel.nfnl.members("s")


def test_what_no_transaction_changed_is_not_read_again_but_what_packets_and_time_change_is(
    netns: Namespace, kernel: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns.nft(
        "add table inet nftguard\nadd set inet nftguard s { type inet_proto . inet_service; flags timeout; }\n"
        "add element inet nftguard s { tcp . 587 timeout 1h }\nadd counter inet nftguard mail.output.udp.9\n"
        "add chain inet nftguard output { type filter hook output priority filter; }\n"
        'add rule inet nftguard output udp dport 9 counter name "mail.output.udp.9" drop'
    )
    assert (first := kernel.snapshot())
    asked: list[str] = []
    monkeypatch.setattr(kernel, "_list", asked.append)
    netns.run("bash", "-c", "echo > /dev/udp/127.0.0.1/9", check=False)
    netns.run("bash", "-c", "echo > /dev/udp/127.0.0.1/9", check=False)
    second = kernel.snapshot()
    assert asked == []
    counter = Counter("mail.output.udp.9", 2, 58)
    assert second == replace(first, counters={counter.name: counter})
    monkeypatch.undo()
    netns.nft("delete rule inet nftguard output handle 4")
    assert (third := kernel.snapshot())
    assert third.chains["output"].rules == ()
    netns.nft("delete table inet nftguard")
    assert kernel.snapshot() is None
