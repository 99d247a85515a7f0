"""The resolver's process, with a real DNS server in another namespace."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nftguard import state
from nftguard.resolver import entries
from nftguard.resolver.entries import Entry
from tests.boot.waiting import wait_until
from tests.nameserver import Nameserver
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RUN = """
import sys
from pathlib import Path
from nftguard.resolver import ask, serve
from nftguard.resolver.book import Limits
ask.PATIENCE, serve.LOOK_EVERY, serve.SETTLE = 0.2, 0.1, 0.02
least, grace = map(float, sys.argv[2:])
folder = Path(sys.argv[1])
limits = Limits(least=least, grace=grace, retry_first=0.1, retry_most=0.1, hurry_every=0.1)
serve.run(folder / "run/names", folder / "answers/answers.json", folder / "etc", limits)
"""
RELAY = "smtp.relay.example"
V4, V6 = "198.51.100.7", "2001:db8::7"
SERVERS = ("10.0.77.2", "fd00:77::2")


class Resolver:
    """The process, the files around it, and the server that it asks."""

    def __init__(self, netns: Namespace, server: Nameserver, folder: Path) -> None:
        self.netns, self.server, self.folder = netns, server, folder
        self.process: subprocess.Popen[str] | None = None
        for name in ("run", "answers", "etc"):
            (folder / name).mkdir()
        self.servers(*SERVERS)

    def servers(self, *addresses: str) -> None:
        lines = ["search lan.example", *(f"nameserver {address}" for address in addresses)]
        state.write(self.folder / "etc/resolv.conf", "\n".join(lines))

    def want(self, *names: str, **known: Entry) -> None:
        wanted = dict.fromkeys(names, Entry()) | {name.replace("_", "."): entry for name, entry in known.items()}
        state.write(self.folder / "run/names", entries.encode(wanted))

    def start(self, *, least: float = 0.1, grace: float = 300.0) -> None:
        self.process = self.netns.popen(
            *(sys.executable, "-c", _RUN, str(self.folder), str(least), str(grace)), stderr=subprocess.PIPE
        )

    def answers(self) -> dict[str, Entry]:
        try:
            return entries.decode((self.folder / "answers/answers.json").read_bytes())
        except FileNotFoundError:
            return {}

    def addresses(self, name: str = RELAY) -> set[str]:
        return set(self.answers().get(name, Entry()).addresses)

    def error(self, name: str = RELAY) -> str:
        return self.answers().get(name, Entry()).error

    def finds(self, *addresses: str, name: str = RELAY) -> None:
        wait_until(lambda: self.addresses(name) == set(addresses), f"{addresses} for {name}")

    def fails(self, error: str, name: str = RELAY) -> None:
        wait_until(lambda: error in self.error(name), f"{error!r} of {name}")

    def asked_again(self, name: str = RELAY) -> None:
        before = self.server.times(name)
        wait_until(lambda: self.server.times(name) >= before + 2, f"more questions for {name}")

    def end(self) -> tuple[int, str]:
        assert self.process
        _, said = self.process.communicate(timeout=10)
        return self.process.returncode, said


@pytest.fixture
def resolver(netns: Namespace, tmp_path: Path) -> Iterator[Resolver]:
    far = Namespace()
    for end in (netns, far):  # else IPv6 is a second late
        end.run("sysctl", "--write", "net.ipv6.conf.default.accept_dad=0")
    connect(netns, far, "line", 77)
    server = Nameserver(far, *SERVERS)
    found = Resolver(netns, server, tmp_path)
    yield found
    if found.process and found.process.poll() is None:
        found.process.kill()
        found.process.communicate(timeout=10)
    server.close()
    far.close()


@pytest.mark.parametrize("address", SERVERS)
def test_both_families_are_found_through_a_server_of_either_by_tcp_where_a_packet_is_too_small(
    resolver: Resolver, address: str
) -> None:
    resolver.servers(address)
    many = [f"198.51.100.{number}" for number in range(1, 61)]
    resolver.server.zone |= {
        RELAY: {"A": [V4], "AAAA": [V6]},
        "many.example": {"A": many},
        "other.example": {"CNAME": ["another.example."]},
        "another.example": {"CNAME": [f"{RELAY}."]},
        "crowd.example": {"A": [f"198.51.100.{number}" for number in range(1, 101)]},
    }
    resolver.want(RELAY, "many.example", "other.example", "crowd.example")
    resolver.start()
    resolver.finds(V4, V6)
    resolver.finds(V4, V6, name="other.example")
    resolver.finds(*many, name="many.example")
    family = 6 if ":" in address else 4
    assert {way for name, _, way in resolver.server.asked if name == RELAY} == {f"udp{family}"}
    assert ("many.example", "A", f"tcp{family}") in resolver.server.asked
    assert resolver.error() == resolver.error("many.example") == ""
    resolver.fails("64 of a family are used", "crowd.example")
    assert len(resolver.addresses("crowd.example")) == entries.MAX_ADDRESSES
    mode = (resolver.folder / "answers/answers.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o644, "another user reads it"


def changed(resolver: Resolver, grace: float) -> None:
    """Start, and change what two names have once it was found."""
    resolver.server.zone |= {RELAY: {"A": [V4], "AAAA": [V6]}, "gone.example": {"A": [V4]}}
    resolver.want(RELAY, "gone.example")
    resolver.start(grace=grace)
    resolver.finds(V4, V6)
    resolver.finds(V4, name="gone.example")
    resolver.server.zone[RELAY] = {"A": ["198.51.100.8"]}
    del resolver.server.zone["gone.example"]


def test_a_new_address_is_taken_at_once_and_one_that_answers_lack_is_held_for_a_while(resolver: Resolver) -> None:
    changed(resolver, grace=300)
    resolver.finds(V4, V6, "198.51.100.8")
    resolver.fails("there is no such name", "gone.example")
    assert resolver.addresses("gone.example") == {V4}
    assert resolver.error() == ""


def test_an_address_that_answers_lack_for_long_is_let_go(resolver: Resolver) -> None:
    changed(resolver, grace=0.2)
    resolver.finds("198.51.100.8")
    resolver.finds(name="gone.example")
    assert resolver.answers()["gone.example"].at is not None, "an answer, and not the lack of one"
    assert {name for name, _, _ in resolver.server.asked} == {RELAY, "gone.example"}, "names are full names"


def test_a_server_that_fails_changes_nothing(resolver: Resolver) -> None:
    failures = ("SERVFAIL", "REFUSED", "FORMERR", "silence", "garbage", "another")
    names = {f"{failure.lower()}.example": failure for failure in failures}
    good: dict[str, list[str]] = {"A": [V4], "AAAA": [V6]}
    resolver.server.zone |= dict.fromkeys(names, good)
    resolver.want(*names)
    resolver.start(grace=0.1)
    for name in names:
        resolver.finds(V4, V6, name=name)
    resolver.server.zone |= names
    for name in names:
        wait_until(lambda name=name: resolver.error(name) != "", f"the failure of {name}")  # type: ignore[misc]
        resolver.asked_again(name)
        assert resolver.addresses(name) == {V4, V6}, name
    assert resolver.error("servfail.example") == "the server answers SERVFAIL"
    assert resolver.error("silence.example") == "no server answers"
    resolver.server.zone |= {name: {"A": ["198.51.100.8"]} for name in names}
    for name in names:
        resolver.finds("198.51.100.8", name=name)
        wait_until(lambda name=name: resolver.error(name) == "", f"the end of the failure of {name}")  # type: ignore[misc]


def test_an_address_that_is_no_host_s_is_not_taken_from_a_server(resolver: Resolver) -> None:
    """One family that fails so leaves the other alone."""
    bad = {f"n{at}.example": one for at, one in enumerate(("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"))}  # noqa: S104
    resolver.server.zone |= {name: {"A": [V4], "AAAA": [V6]} for name in bad}
    resolver.want(*bad)
    resolver.start(grace=0.1)
    for name in bad:
        resolver.finds(V4, V6, name=name)
    resolver.server.zone |= {name: {"A": [address], "AAAA": [V6, "::", "fe80::1"]} for name, address in bad.items()}
    for name, address in bad.items():
        resolver.fails(f"IPv4: {address} is no host's address", name)
        assert resolver.addresses(name) == {V4, V6}


def test_the_hosts_file_comes_first_and_its_changes_are_seen(resolver: Resolver) -> None:
    resolver.server.zone[RELAY] = {"A": [V4]}
    hosts = resolver.folder / "etc/hosts"
    state.write(hosts, f"# nothing\n127.0.0.1 localhost\nnonsense {RELAY}\n192.0.2.1 other SMTP.Relay.Example # it\n")
    resolver.want(RELAY, "LocalHost")
    resolver.start(least=3600, grace=0.5)
    resolver.finds("192.0.2.1")
    resolver.finds("127.0.0.1", name="LocalHost")
    assert resolver.server.asked == []
    state.write(hosts, f"2001:db8::1 {RELAY}\n")
    wait_until(lambda: "2001:db8::1" in resolver.addresses(), "the other line")
    state.write(hosts, "")
    wait_until(lambda: V4 in resolver.addresses(), "the server's answer")


def test_another_server_is_asked_when_resolv_conf_changes(resolver: Resolver) -> None:
    resolver.server.zone[RELAY] = {"A": [V4]}
    resolver.servers()
    resolver.want(RELAY)
    resolver.start(least=3600)
    resolver.fails("resolv.conf names no server")
    resolver.servers(SERVERS[1])
    resolver.finds(V4)


def test_a_change_of_the_network_asks_anew_at_once(resolver: Resolver) -> None:
    resolver.server.zone[RELAY] = {"A": [V4]}
    resolver.server.ttl = 3600
    resolver.want(RELAY)
    resolver.start(least=3600)
    wait_until(lambda: RELAY in resolver.answers() and resolver.server.times(RELAY) >= 2, "both answers")
    resolver.finds(V4)
    resolver.server.zone[RELAY] = {"A": [V4, "198.51.100.8"]}
    resolver.netns.run("ip", "address", "add", "192.0.2.99/32", "dev", "lo")
    resolver.finds(V4, "198.51.100.8")


def test_a_new_process_holds_what_the_daemon_knows_while_no_server_answers(resolver: Resolver) -> None:
    resolver.server.zone[RELAY] = "silence"
    resolver.want(smtp_relay_example=Entry((V4, V6), at=12.0))
    resolver.start(grace=0.1)
    resolver.fails("no server answers")
    assert resolver.addresses() == {V4, V6}
    assert resolver.answers()[RELAY].at == 12.0


def test_it_follows_what_is_wanted_and_ends_when_nothing_is(resolver: Resolver) -> None:
    resolver.server.zone |= {RELAY: {"A": [V4]}, "b.example": {"A": ["198.51.100.8"]}}
    resolver.want(RELAY)
    resolver.start()
    resolver.finds(V4)
    resolver.want("b.example")
    resolver.finds("198.51.100.8", name="b.example")
    assert set(resolver.answers()) == {"b.example"}
    (resolver.folder / "run/names").unlink()
    assert resolver.end() == (0, "")
    assert not (resolver.folder / "answers/answers.json").exists()


def test_it_ends_when_the_daemon_s_folder_goes(resolver: Resolver) -> None:
    resolver.want(RELAY)
    resolver.start()
    wait_until(lambda: RELAY in resolver.answers(), "the first answers")
    (resolver.folder / "run").rename(resolver.folder / "gone")
    assert resolver.end() == (0, "")


def test_without_names_it_ends_at_once(resolver: Resolver) -> None:
    resolver.start()
    assert resolver.end() == (0, "")


def test_nonsense_in_place_of_names_is_not_waited_for_and_does_not_end_it(resolver: Resolver) -> None:
    """An end would have systemd start it again and again: the file is still there."""
    resolver.server.zone[RELAY] = {"A": [V4]}
    os.mkfifo(resolver.folder / "run/names")
    resolver.start()
    wait_until(lambda: (resolver.folder / "answers/answers.json").exists(), "the process")
    state.write(resolver.folder / "run/names", '{"-x": {}}')
    resolver.want(RELAY)
    resolver.finds(V4)


def test_as_many_names_as_there_may_be_are_found_together_with_one_that_nobody_answers(resolver: Resolver) -> None:
    names = [f"n{number}.example" for number in range(entries.MAX_NAMES - 1)]
    resolver.server.zone |= {name: {"A": [V4], "AAAA": [V6]} for name in names} | {"mute.example": "silence"}
    resolver.want("mute.example", *names)
    resolver.start(least=3600)
    wait_until(lambda: all(resolver.addresses(name) == {V4, V6} for name in names), "every name")
    resolver.fails("no server answers", "mute.example")


def test_it_ends_quietly_when_it_is_told_to(resolver: Resolver) -> None:
    resolver.want(RELAY)
    resolver.start()
    wait_until(lambda: RELAY in resolver.answers(), "the first answers")
    assert resolver.process
    resolver.process.send_signal(signal.SIGTERM)
    assert resolver.end() == (-signal.SIGTERM, "")
