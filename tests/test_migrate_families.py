"""Files that hold rules of IPv4 and of IPv6 are imported so that either family's packets are stopped as before."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nftguard.errors import NftguardError
from nftguard.migrate import iptables
from tests.test_migrate import blocks, findings, ports, run
from tests.test_migrate_packets import _EMPTY, _SAMPLE, ACK, SYN, UDP, Host2, _packet, imported

if TYPE_CHECKING:
    from collections.abc import Iterator

_TARGETS = {4: ("10.0.2.2", "10.0.3.2", "127.0.0.1"), 6: ("fd00:2::2", "fd00:3::2", "::1")}


class Host6(Host2):
    """The same host, which sends over IPv6, too."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__(stack)
        with self.near.entered():
            self.raw6 = {
                protocol: stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol))
                for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
            }

    def sent(self) -> set[tuple[int, int, str, int]]:
        """Send packets of both families, and give those that were not stopped on the way out."""
        found = set()
        for kind in (SYN, ACK, UDP):
            for port in _SAMPLE:
                found |= {(4, kind, target, port) for target in _TARGETS[4] if self.passes(kind, target, port)}
                found |= {(6, kind, target, port) for target in _TARGETS[6] if self._passes6(kind, target, port)}
        return found

    def _passes6(self, kind: int, target: str, port: int) -> bool:
        try:
            sock = self.raw6[socket.IPPROTO_UDP if kind == UDP else socket.IPPROTO_TCP]
            sock.sendto(_packet(kind, port), (target, 0))
        except PermissionError:
            return False
        return True

    def load(self, four: str, six: str) -> None:
        self.restore(four, "iptables-legacy-restore")
        self.restore(six, "ip6tables-legacy-restore")


@pytest.fixture(scope="module")
def host(_kernel_there: None) -> Iterator[Host6]:
    with contextlib.ExitStack() as stack:
        yield Host6(stack)


_ANY = ["-o wan", "-o lo", "-m owner --uid-owner 0", "-m owner ! --uid-owner 0", "! -o wan", "! -o lo"]
_PLACES = {"4": ["-d 10.0.2.0/24", "! -d 10.0.3.2"], "6": ["-d fd00:2::/64", "! -d fd00:3::2"], "": []}


@st.composite
def _rule(draw: st.DrawFn, families: tuple[str, ...]) -> tuple[str, str]:
    family = draw(st.sampled_from(families))
    target = draw(st.sampled_from(["ACCEPT", "DROP", "DROP"]))
    protocol = draw(st.sampled_from(["-p tcp", "-p tcp", "-p udp"]))
    port = draw(st.sampled_from(["--dport 25", "--dport 25", "--dport 20:30", ""]))
    facts = draw(st.lists(st.sampled_from([*_ANY, *_PLACES[family]]), max_size=1))
    return family, " ".join(word for word in [protocol, port, *facts, f"-j {target}"] if word)


def _file(rules: list[str]) -> str:
    return "\n".join(["*filter", ":OUTPUT ACCEPT [0:0]", *(f"-A OUTPUT {rule}" for rule in rules), "COMMIT", ""])


def _same(host: Host6, text: str, four: str, six: str) -> None:
    toml, found = imported(text)
    whys = [finding.why for finding in found]
    try:
        host.load(four, six)
        before = host.sent()
        host.load(_EMPTY, _EMPTY)
        if toml:
            host.guard(toml)
        after = host.sent()
    finally:
        host.load(_EMPTY, _EMPTY)
        host.lift()
    shown = f"{text}\n{toml}\n{found}\n{sorted(before ^ after)}"
    assert after <= before or any("so not blocked" in why or "more widely" in why for why in whys), shown
    for family in (4, 6):
        lost = any(packet[0] == family for packet in before - after)
        said = ("blocked for it too", f"blocked over IPv{family} too")
        assert not lost or any(words in why for why in whys for words in said), shown


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(rules=st.lists(_rule(("4", "6", "")), min_size=2, max_size=6).filter(lambda rules: len({*dict(rules)}) > 1))
@example(rules=[("4", "-p tcp --dport 25 -j ACCEPT"), ("", "-p tcp --dport 25 -j DROP")])
@example(rules=[("6", "-p tcp --dport 25 -j ACCEPT"), ("", "-p tcp --dport 25 -m owner ! --uid-owner 1000 -j DROP")])
@example(rules=[("4", "-p tcp --dport 25 -j DROP"), ("6", "-d fd00:2::2 -j ACCEPT"), ("", "-p tcp --dport 25 -j DROP")])
def test_a_file_for_both_restores_stops_the_same_packets(host: Host6, rules: list[tuple[str, str]]) -> None:
    text = _file([f"-{family} {rule}" if family else rule for family, rule in rules])
    each = [_file([rule for own, rule in rules if own in {"", family}]) for family in "46"]
    _same(host, text, *each)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(
    four=st.lists(_rule(("4",)), min_size=1, max_size=4),
    six=st.lists(_rule(("6",)), min_size=1, max_size=4),
    as_commands=st.booleans(),
)
@example(four=[("4", "-p tcp --dport 25 -j ACCEPT")], six=[("6", "-p tcp --dport 25 -j DROP")], as_commands=True)
@example(four=[("4", "-p tcp --dport 25 -j ACCEPT")], six=[("6", "-p tcp --dport 25 -j DROP")], as_commands=False)
def test_rules_of_both_families_one_after_the_other_stop_the_same_packets(
    host: Host6, four: list[tuple[str, str]], six: list[tuple[str, str]], as_commands: bool
) -> None:
    each = [_file([rule for _, rule in rules]) for rules in (four, six)]
    commands = [f"{'iptables' if family == '4' else 'ip6tables'} -A OUTPUT {rule}" for family, rule in (*four, *six)]
    pairs = [" 2>/dev/null || true; ".join(commands[at : at + 2]) for at in range(0, len(commands), 2)]
    _same(host, "\n".join(pairs) if as_commands else "".join(each), *each)


def test_the_same_rules_for_both_families_are_one_block_with_the_addresses_of_both() -> None:
    (block,) = blocks(
        "iptables -A OUTPUT -d 192.0.2.1 -j ACCEPT\nip6tables -A OUTPUT -d 2001:db8::1 -j ACCEPT\n"
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP\nip6tables -A OUTPUT -p tcp --dport 25 -j DROP\n"
    )
    assert (ports(block), block.allow.to) == (["25"], ("192.0.2.1", "2001:db8::1"))


@pytest.mark.parametrize(
    "text",
    [
        "iptables -A OUTPUT {} -j ACCEPT\nip6tables -A OUTPUT {} -j DROP\n",
        "*filter\n-A OUTPUT -4 {} -j ACCEPT\n-A OUTPUT {} -j DROP\nCOMMIT\n",
        "*filter\n-A OUTPUT {} -j ACCEPT\nCOMMIT\n*filter\n-A OUTPUT {} -j DROP\nCOMMIT\n",
        "-P OUTPUT ACCEPT\n-A OUTPUT {} -j ACCEPT\n-P OUTPUT ACCEPT\n-A OUTPUT {} -j DROP\n",
        "ipv4 filter OUTPUT 0 {} -j ACCEPT\nipv6 filter OUTPUT 0 {} -j DROP\n",
        "25/tcp       ALLOW OUT   Anywhere\n25/tcp (v6)  DENY OUT    Anywhere (v6)\nStatus: active\n",
    ],
)
def test_a_block_of_one_family_alone_is_kept_and_named(text: str) -> None:
    done = run(text.replace("{}", "-p tcp --dport 25"))
    assert done.exit_code == 1
    assert "ports = [25]" in done.stdout
    assert "blocked over IPv4 too" in done.stderr


def test_a_family_is_told_by_what_iptables_save_writes_above_its_rules() -> None:
    first, second = (
        f"# Generated by ip{six}tables-save v1.8.9\n*filter\n-A OUTPUT -p tcp --dport 25 -j {target}\nCOMMIT\n"
        for six, target in (("6", "ACCEPT"), ("", "DROP"))
    )
    ((number, why),) = findings(first + second)
    assert (number, "blocked over IPv6 too" in why) == (7, True)
    for text in (second * 2, first * 2, "*filter\nCOMMIT\n" * 3):
        with pytest.raises(NftguardError, match="import one listing at a time"):
            iptables.read(text.splitlines())


def test_both_of_ufws_files_are_read_one_after_the_other() -> None:
    four = "*filter\n:ufw-user-output - [0:0]\n-A ufw-user-output -p tcp --dport 25 -j DROP\nCOMMIT\n"
    (block,) = blocks(four + four.replace("ufw", "ufw6"))
    assert ports(block) == ["25"]
    assert "blocked over IPv6 too" in run(four + four.replace("ufw", "ufw6").replace("25", "26")).stderr
