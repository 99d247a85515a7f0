"""`nftguard verify`: what it proves, what it finds, what it cannot try, and that it leaves no trace in the records."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from nftguard import canary, reach, verify
from nftguard.allowed import book
from nftguard.allowed.grant import Grant, Selection, Who
from nftguard.attempts.recorder import Recorder
from nftguard.bulletin import Bulletin
from nftguard.canary import Canary
from nftguard.host import Host
from nftguard.kernel import Nftables
from nftguard.model import Hook, Protocol, Table
from nftguard.network import Link
from nftguard.policy import build
from nftguard.reconcile import reconcile
from nftguard.verify import Check, Result, canaries
from nftguard.wire import rtnl
from tests.examples import config_of, table_of
from tests.groups import joining
from tests.guard import Guard, cli
from tests.netns import Namespace, connect

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = '[[block]]\nname = "mail"\nports = [25, 465]\n'


@pytest.fixture
def uplink(netns: Namespace) -> Iterator[None]:
    """Give the namespace a way to the world over IPv4 and IPv6."""
    far = Namespace()
    connect(netns, far, "uplink", 1)
    netns.run("ip", "route", "add", "default", "via", "10.0.1.2")
    netns.run("ip", "-6", "route", "add", "default", "via", "fd00:1::2")
    yield
    far.close()


def asked(netns: Namespace, config: Path) -> tuple[int, dict[str, Any]]:
    done = cli(netns, config, "verify", "--json")
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


def results(document: dict[str, Any]) -> dict[str, str]:
    return {check["what"]: check["result"] for check in document["checks"]}


@pytest.mark.usefixtures("uplink")
def test_a_guarded_host_is_proven_and_the_canaries_are_nobodys_attempts(
    netns: Namespace, folders: Path, config_file: Path
) -> None:
    """A real attempt after them shows that the daemon had read them by then."""
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        code, document = asked(netns, config_file)
        assert (code, document["proven"]) == (0, True)
        assert set(results(document).values()) == {"ok"}
        assert set(results(document)) == {"rules", "mail tcp over IPv4", "mail tcp over IPv6", "daemon"}
        assert all(check["ok"] is True for check in document["checks"])
        text = guard.cli("verify")
        assert text.returncode == 0
        assert text.stdout.startswith("proven: 11 tcp ports blocked on output\n")
        assert "ok       mail tcp over IPv4: port 21 to 192.0.2.1 stopped and counted\n" in text.stdout
        attempt = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 25))"
        netns.run(sys.executable, "-S", "-c", attempt)
        word = folders / "run/status.json"
        guard.until(lambda: json.loads(word.read_text())["daemon"]["attempts"], "the attempt")
        found = guard.status()
        assert found["daemon"]["attempts"] == 1
        rows = {row["port"]: row for row in found["ports"]}
        assert rows[21]["packets"] == 4, "the counters count them all the same"
        assert rows[21]["last_seen"] is None
        assert guard.stop() == 0
        assert "192.0.2.1" not in guard.log()
        assert "2001:db8" not in guard.log()
        assert "not seen one by one" not in guard.log()


@pytest.mark.usefixtures("uplink")
def test_sums_stay_the_counters(netns: Namespace, kernel: Nftables, folders: Path, base: Path) -> None:
    """Canaries between attempts, and the same again by the next process, which goes on from what was saved."""
    desired, bulletin = table_of(BLOCK), Bulletin()
    (base / "one.service").mkdir()
    code = (
        "import socket\n"
        "for port in (25, 465) * 10: s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', port))"
    )
    with structlog.testing.capture_logs() as records:
        for rounds in (1, 2):
            bulletin.passed(reconcile(kernel, desired), desired)
            recorder = Recorder(kernel.nfnl, bulletin)
            recorder.follow(25)
            recorder.check()
            for _ in range(3):
                assert {check.result for check in canaries(kernel.nfnl, kernel.snapshot(), desired)} == {Result.OK}
                assert Canary(Protocol.TCP, "2001:db8::9", 465, 0).send()
                recorder.settle()
            netns.run(*joining(base / "one.service", sys.executable, "-S", "-c", code))
            assert recorder.settle(every=True)
            recorder.end()
            recorder.close()
            summaries = [one for one in records if one["event"] == "blocked_summary"]
            assert sum(one["packets"] for one in summaries) == 20 * rounds
            assert {one["unit"] for one in summaries} == {"one.service"}, "nothing is left over for nobody"
            told = json.loads((folders / "state/ledger.json").read_text())["told"]
            counted = {name: kernel.nfnl.counter(name) for name in desired.counters}
            assert {name: tuple(total) for name, total in told.items()} == counted
            assert counted["mail.output.tcp.25"] == (16 * rounds, told["mail.output.tcp.25"][1])
    assert {one["unit"] for one in records if one["event"] == "culprit"} == {"one.service"}
    assert {one["destination"] for one in records if one["event"] == "blocked"} == {"127.0.0.1"}
    assert not [one for one in records if one["event"] not in {"blocked", "blocked_summary", "culprit"}]


@pytest.mark.usefixtures("uplink")
def test_canaries_alone_are_saved_as_told(kernel: Nftables, folders: Path) -> None:
    desired, bulletin = table_of(BLOCK), Bulletin()
    bulletin.passed(reconcile(kernel, desired), desired)
    recorder = Recorder(kernel.nfnl, bulletin)
    recorder.follow(25)
    recorder.check()
    canaries(kernel.nfnl, kernel.snapshot(), desired)
    with structlog.testing.capture_logs() as records:
        recorder.end()
    recorder.close()
    assert records == []
    assert json.loads((folders / "state/ledger.json").read_text())["told"]["mail.output.tcp.25"][0] == 2


@pytest.mark.usefixtures("uplink", "folders")
def test_without_a_daemon_it_is_proven_too_and_without_a_table_nothing_is(netns: Namespace, config_file: Path) -> None:
    assert cli(netns, config_file, "apply").returncode == 0
    code, document = asked(netns, config_file)
    assert code == 0
    assert results(document)["daemon"] == "note"
    netns.nft("delete table inet nftguard")
    code, document = asked(netns, config_file)
    assert (code, document["proven"]) == (1, False)
    found = results(document)
    assert found == {
        "rules": "failed",
        "mail tcp over IPv4": "failed",
        "mail tcp over IPv6": "failed",
        "daemon": "note",
    }
    details = {check["what"]: check["detail"] for check in document["checks"]}
    assert details["mail tcp over IPv6"] == "port 21 to 2001:db8::1 was NOT stopped"
    assert cli(netns, config_file, "verify").stdout.startswith("FAILED: 3 of 4 checks\n")


@pytest.mark.usefixtures("uplink", "folders")
def test_a_refused_configuration_is_a_failure_and_what_is_in_force_is_tried(
    netns: Namespace, config_file: Path
) -> None:
    assert cli(netns, config_file, "apply").returncode == 0
    config_file.write_text("[[block]]\nname = 7\n")
    code, document = asked(netns, config_file)
    assert code == 1
    assert results(document)["rules"] == "failed"
    assert results(document)["mail tcp over IPv4"] == "ok"


@pytest.mark.usefixtures("uplink", "folders")
def test_rules_and_packets_are_judged_by_one_look_at_the_kernel(
    netns: Namespace, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that changes the table in between would have the checks speak of two tables."""
    assert cli(netns, config_file, "apply").returncode == 0
    looks: list[Table | None] = []
    real = Nftables.snapshot

    def snapshot(kernel: Nftables) -> Table | None:
        looks.append(real(kernel))
        return looks[-1]

    monkeypatch.setattr(Nftables, "snapshot", snapshot)
    with netns.entered():
        assert verify.verify(config_file).exit_code == 0
    assert len(looks) == 1


@pytest.mark.usefixtures("uplink", "folders")
def test_what_is_allowed_for_a_while_is_no_failure(netns: Namespace, config_file: Path) -> None:
    config_file.write_text('[[block]]\nname = "a"\nports = [25]\n[[block]]\nname = "b"\nports = [25, 465]\n')
    held = book.read()
    held.grant(Grant(Hook.OUTPUT, Protocol.TCP, (25,), Who.ANYONE, "", 600, persist=False, by="root"))
    assert cli(netns, config_file, "apply").returncode == 0
    code, document = asked(netns, config_file)
    assert code == verify.UNPROVEN
    details = {check["what"]: (check["result"], check["detail"]) for check in document["checks"]}
    assert details["rules"][0] == "ok"
    assert details["a tcp over IPv4"] == (
        "skipped",
        "cannot be tried: it is excepted by tcp . 25 in set allowed.output.ports",
    )
    assert details["b tcp over IPv4"] == ("ok", "port 465 to 192.0.2.1 stopped and counted")
    held.revoke(Selection(None, None, None, None))
    code, document = asked(netns, config_file)
    assert (code, results(document)["rules"]) == (1, "failed"), "the kernel lets through what is allowed no more"


@pytest.mark.usefixtures("folders")
def test_a_family_without_a_route_has_nothing_to_prove_but_one_must_have(netns: Namespace, config_file: Path) -> None:
    assert cli(netns, config_file, "apply").returncode == 0
    code, document = asked(netns, config_file)
    assert (code, results(document)["packets"]) == (verify.UNPROVEN, "skipped")
    far = Namespace()
    connect(netns, far, "uplink", 1)
    netns.run("ip", "route", "add", "default", "via", "10.0.1.2")
    code, document = asked(netns, config_file)
    assert code == 0
    assert results(document) == {"rules": "ok", "mail tcp over IPv4": "ok", "IPv6": "note", "daemon": "note"}
    far.close()


def test_without_privilege_it_says_so(netns: Namespace, config_file: Path) -> None:
    for folder in [*config_file.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    argv = (*become, sys.executable, "-m", "nftguard", "--config", str(config_file), "verify", "--json")
    done = netns.run(*argv, check=False)
    assert (done.returncode, json.loads(done.stdout)["exit"]) == (77, 77)
    assert "not permitted; needs root, or CAP_NET_ADMIN" in done.stderr


def tried(kernel: Nftables, text: str, host: Host | None = None) -> list[Check]:
    table = build(config_of(text), host=host)
    reconcile(kernel, table)
    return canaries(kernel.nfnl, kernel.snapshot(), table)


ADDRESSES = ", ".join(f'"{address}"' for address in canary.ADDRESSES[4])


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize(
    "allow",
    ['users = ["root"]', "users = [65534]", "groups = [65534]", 'to = ["192.0.2.0/24"]', 'interfaces = ["lo"]'],
)
def test_a_canary_keeps_clear_of_exceptions(kernel: Nftables, allow: str) -> None:
    """Another sender, or another address of the documentation, is stopped."""
    found = tried(kernel, f"{BLOCK}allow = {{ {allow} }}\n", Host(users={"root": 0}))
    assert [check.result for check in found] == [Result.OK, Result.OK]
    address = "198.51.100.1" if "192.0.2" in allow else "192.0.2.1"
    assert found[0].detail == f"port 25 to {address} stopped and counted"


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize(
    ("allow", "why"),
    [
        (f"to = [{ADDRESSES}]", "192.0.2.1 in set mail.to4"),
        ('interfaces = ["up*"]', "up* in set mail.interfaces"),
        ('from = ["10.0.1.0/24"]', "10.0.1.0/24 in set mail.from4"),
    ],
)
def test_where_none_is_clear_of_exceptions_they_are_named(kernel: Nftables, allow: str, why: str) -> None:
    found = tried(kernel, f"{BLOCK}allow = {{ {allow} }}\n")
    assert found[0] == Check("mail tcp over IPv4", Result.SKIPPED, f"cannot be tried: it is excepted by {why}")
    assert found[1].result is (Result.SKIPPED if "interfaces" in allow else Result.OK)


@pytest.mark.usefixtures("uplink")
def test_of_blocks_that_share_ports_each_is_tried_where_it_decides(kernel: Nftables) -> None:
    more = '[[block]]\nname = "more"\nports = [25, 80]\n[[block]]\nname = "same"\nports = [465]\n'
    found = {check.what: check for check in tried(kernel, BLOCK + more)}
    assert {check.result for check in found.values()} == {Result.OK}
    assert found["more tcp over IPv4"].detail == "port 80 to 192.0.2.1 stopped and counted"
    assert found["same tcp over IPv4"].detail == "port 465 to 192.0.2.1 stopped and counted by block mail"


@pytest.mark.usefixtures("uplink")
def test_a_way_past_the_block_is_found_whatever_the_listing_says(kernel: Nftables, netns: Namespace) -> None:
    """The rules are not compared here: the packets alone tell."""
    wanted = table_of(BLOCK)
    assert {check.result for check in tried(kernel, BLOCK)} == {Result.OK}
    listed = kernel.snapshot()
    for change in (
        "insert rule inet nftguard mail.output.tcp accept",
        "insert rule inet nftguard mail.output.tcp meta nfproto ipv6 return",
        "add table inet nftguard { flags dormant; }",
    ):
        netns.nft(change)
        for live in (listed, kernel.snapshot(), None):
            ipv4, ipv6 = canaries(kernel.nfnl, live, wanted)
            assert ipv6.result is Result.FAILED
            assert (ipv4.result is Result.FAILED) is ("nfproto" not in change)
        netns.nft("delete table inet nftguard")
        reconcile(kernel, wanted)


@pytest.mark.usefixtures("uplink")
def test_an_exception_is_no_excuse_for_what_passes_beside_it(kernel: Nftables, netns: Namespace) -> None:
    wanted = table_of(f'{BLOCK}allow = {{ to = ["{canary.ADDRESSES[4][0]}"] }}\n')
    reconcile(kernel, wanted)
    chain = "inet nftguard mail.output.tcp"
    netns.nft(f"flush chain {chain}\nadd rule {chain} ip daddr @mail.to4 return\nadd rule {chain} accept\n")
    ipv4, ipv6 = canaries(kernel.nfnl, kernel.snapshot(), wanted)
    assert (ipv4.result, ipv6.result) == (Result.FAILED, Result.FAILED)
    assert ipv4.detail == "port 25 to 198.51.100.1 was NOT stopped"


@pytest.mark.usefixtures("uplink")
def test_a_canary_of_an_excepted_unit_is_not_tried(kernel: Nftables, netns: Namespace, base: Path) -> None:
    """Whose unit a socket belongs to cannot be chosen, as its user can: it is that of this process."""
    place = base / "one.service" / "below"
    place.mkdir(parents=True)
    code = "from nftguard.verify import _own_groups; print(*_own_groups())"
    groups = netns.run(*joining(place, sys.executable, "-c", code)).stdout.split()
    assert groups == [str(folder.stat().st_ino) for folder in (base, base / "one.service", place)]
    path = str((base / "one.service").relative_to("/sys/fs/cgroup"))  # where nft looks
    allow = 'allow = { units = ["one.service"] }\n'
    reconcile(kernel, build(config_of(BLOCK + allow), host=Host(units={"one.service": {groups[1]: path}})))
    code = (
        "import sys\nfrom nftguard.kernel import Nftables\nfrom nftguard.verify import canaries\n"
        "kernel = Nftables(); live = kernel.snapshot()\n"
        "print(*{check.detail for check in canaries(kernel.nfnl, live, live)})"
    )
    for where, expected in ((place, f"excepted by {groups[1]} in set mail.units"), (base, "stopped and counted")):
        assert expected in netns.run(*joining(where, sys.executable, "-c", code)).stdout


@pytest.mark.usefixtures("uplink")
def test_what_another_program_stops_first_is_not_proven(kernel: Nftables, netns: Namespace) -> None:
    netns.nft("table inet other { chain out { type filter hook output priority -10; ip daddr 192.0.2.0/24 drop; }; }")
    found = tried(kernel, BLOCK)
    assert [check.result for check in found] == [Result.SKIPPED, Result.OK]
    assert found[0].detail == "port 25 to 192.0.2.1 was stopped before nftguard saw it: by another's rules"


@pytest.mark.usefixtures("uplink")
def test_hooks_that_no_packet_can_be_sent_through_are_named(kernel: Nftables) -> None:
    found = tried(kernel, BLOCK + 'hooks = ["forward"]\n')
    assert [(check.what, check.result) for check in found] == [("forward", Result.NOTE), ("packets", Result.SKIPPED)]


@pytest.mark.usefixtures("uplink")
def test_without_the_right_to_send_it_nothing_is_proven(kernel: Nftables, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Canary) -> bool:
        raise PermissionError

    monkeypatch.setattr(Canary, "send", refuse)
    assert [check.result for check in tried(kernel, BLOCK)] == [Result.SKIPPED, Result.SKIPPED]


FORWARD, BRIDGE = table_of(BLOCK + 'hooks = ["forward"]\n'), table_of(BLOCK + 'hooks = ["bridge"]\n')


def proc(folder: Path, **switches: str) -> Path:
    paths = {"ipv4": "sys/net/ipv4/ip_forward", "ipv6": "sys/net/ipv6/conf/all/forwarding", "packet": "net/packet"}
    for name, text in switches.items():
        path = folder / paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("table", "switches", "kinds", "expected"),
    [
        (Table(), {}, ["", "veth"], []),
        (Table(), {"ipv4": "0\n", "ipv6": "0\n"}, [], []),
        (Table(), {"ipv4": "1\n"}, [], ["routes for others (IPv4): no block has the hook forward"]),
        (Table(), {"ipv4": "1\n", "ipv6": "1\n"}, [], ["(IPv4 and IPv6)"]),
        (FORWARD, {"ipv4": "1\n"}, [], []),
        (FORWARD, {"ipv4": "1\n", "ipv6": "1\n"}, [], ["routed IPv6 fragments"]),
        (Table(), {}, ["bridge"], []),
        (Table(), {}, ["bridge", "port"], ["of a bridge (one0): no block has the hook bridge"]),
        (FORWARD, {}, ["bridge", "port"], ["of a bridge (one0): no block has the hook bridge"]),
        (BRIDGE, {}, ["bridge", "port"], []),
        (BRIDGE, {"ipv4": "1\n"}, ["bridge", "port"], ["(IPv4): no block has the hook forward"]),
        (FORWARD, {}, ["macvlan", "ipvlan"], ["(one0, one1): what they send meets none of these rules"]),
        (Table(), {}, ["wireguard"], ["tunnels (one0)"]),
        (Table(), {"packet": "sk RefCnt\nffff8 3\n"}, [], ["through 1 packet socket that"]),
    ],
)
def test_what_is_out_of_reach_is_named_where_it_is_there(
    tmp_path: Path, table: Table, switches: dict[str, str], kinds: list[str], expected: list[str]
) -> None:
    links = [
        Link(index + 2, f"one{index}", kind, 2 if kind == "port" else 0, up=True) for index, kind in enumerate(kinds)
    ]
    found = reach.unreached(table, proc(tmp_path, **switches), links)
    assert len(found) == len(expected)
    assert all(text in line for text, line in zip(expected, found, strict=True))


def test_a_tunnel_that_is_down_carries_nothing(tmp_path: Path) -> None:
    one = Link(2, "tunl0", "ipip", 0, up=True)
    assert reach.unreached(Table(), tmp_path, [one])
    assert reach.unreached(Table(), tmp_path, [replace(one, up=False)]) == []


def test_other_namespaces_with_a_network_are_counted(tmp_path: Path) -> None:
    """Each once, whatever runs in it; one that has nothing but loopback, as many services have, leads nowhere."""
    loopback, link = "0001 01 80 10 80 lo\n", "fe80 02 40 20 80 eth0\n"
    header, route = "Iface Destination\n", "eth0 00000000\n"
    for name, namespace, addresses, routes in (
        ("self", "own", loopback + link, header + route),
        ("1", "own", loopback + link, header + route),
        ("2", "lonely", loopback, header),
        ("3", "ipv4", loopback, header + route),
        ("4", "ipv4", loopback, header + route),
        ("5", "ipv6", loopback + link, header),
        ("6", "", loopback + link, header),
    ):
        (tmp_path / name / "net").mkdir(parents=True)
        (tmp_path / name / "net/if_inet6").write_text(addresses)
        (tmp_path / name / "net/route").write_text(routes)
        (tmp_path / name / "ns").mkdir()
        if namespace:
            (tmp_path / namespace).touch()
            (tmp_path / name / "ns/net").hardlink_to(tmp_path / namespace)
    (line,) = reach.unreached(Table(), tmp_path, [])
    assert line.startswith("2 other network namespaces with a network, of containers for instance: what they send")


def test_this_host_is_looked_at_as_it_is(netns: Namespace) -> None:
    netns.run("ip", "link", "add", "br7", "type", "bridge")
    netns.run("ip", "link", "add", "port7", "master", "br7", "type", "veth")
    with netns.entered():
        ways, found = reach.open_ways(Table()), reach.unreached(Table())
    assert ways == ["what goes from port to port of a bridge (br7): no block has the hook bridge"]
    assert found[: len(ways)] == ways


def test_links_that_change_while_they_are_listed_are_asked_for_again(
    netns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    netns.run("ip", "link", "add", "br7", "type", "bridge")
    netns.run("ip", "link", "add", "port7", "master", "br7", "type", "veth")
    real, torn = rtnl.links, [True, True]

    def links(sock: socket.socket) -> list[Link]:
        if torn:
            torn.pop()
            raise InterruptedError
        return real(sock)

    monkeypatch.setattr(rtnl, "links", links)
    with netns.entered():
        assert len(reach.open_ways(Table())) == 1
