"""How things stand, judged from the kernel's state."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nftguard.look import Look
from nftguard.model import Base, Chain, Counter, Table, Verdict
from nftguard.ports import Ports
from nftguard.status import State, document, judge, render, summary
from tests.examples import table_of

MAIL = table_of('[[block]]\nname = "mail"\nports = [25, "1000-2000"]\nhooks = ["output", "forward"]\n')

ONE = table_of('[[block]]\nname = "mail"\nports = [25]\n')


def test_the_desired_table_is_protected() -> None:
    assert judge(MAIL, MAIL).state is State.PROTECTED


def test_live_counter_values_do_not_matter() -> None:
    live = replace(MAIL, counters={name: Counter(name, 5, 6) for name in MAIL.counters})
    assert judge(live, MAIL).state is State.PROTECTED


@pytest.mark.parametrize(
    "live",
    [
        None,
        Table(),
        replace(MAIL, flags=frozenset({"dormant"})),
        replace(ONE, chains={**ONE.chains, "output": Chain("output", (), Base("output"))}),
        replace(ONE, chains={**ONE.chains, "output": replace(ONE.chains["output"], base=None)}),
        replace(ONE, chains={name: chain for name, chain in ONE.chains.items() if name != "output"}),
    ],
)
def test_without_a_way_to_the_rules_it_is_unprotected(live: Table | None) -> None:
    standing = judge(live, MAIL)
    assert standing.state is State.UNPROTECTED
    assert standing.reasons


def test_with_a_hook_that_is_not_in_force_yet_it_is_degraded() -> None:
    """As after an edit that nobody applied: what was blocked before still is."""
    live = replace(MAIL, chains={name: chain for name, chain in MAIL.chains.items() if name != "forward"})
    assert judge(live, MAIL).state is State.DEGRADED


def test_with_other_rules_it_is_degraded_and_says_which() -> None:
    output = MAIL.maps["output.tcp"]
    live = replace(MAIL, maps={**MAIL.maps, "output.tcp": replace(output, elements={Ports(26, 26): Verdict("drop")})})
    standing = judge(live, MAIL)
    assert standing.state is State.DEGRADED
    assert standing.reasons == ("map output.tcp lacks port 25", "map output.tcp has port 26 besides")


def test_with_a_refused_configuration_it_is_degraded_as_long_as_rules_are_live() -> None:
    assert judge(MAIL, None, ("x: refused",)).state is State.DEGRADED
    assert judge(None, None, ("x: refused",)).state is State.UNPROTECTED


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[block]]\nname = "a"\nports = [25]', "1 tcp port blocked on output"),
        ('[[block]]\nname = "a"\nports = [25, "1-64512"]', "64,512 tcp ports blocked on output"),
        (
            '[[block]]\nname = "a"\nports = [25, 26]\nprotocols = ["tcp", "udp"]\nhooks = ["input", "output"]',
            "2 tcp and 2 udp ports blocked on output, 2 tcp and 2 udp ports blocked on input",
        ),
        (
            '[[block]]\nname = "a"\nports = [25, "100-200"]\n[[block]]\nname = "b"\nports = [25, 26, "150-250"]',
            "153 tcp ports blocked on output",
        ),
    ],
)
def test_the_summary_counts_each_port_once(text: str, told: str) -> None:
    assert summary(table_of(text)) == told


def test_the_summary_of_nothing() -> None:
    assert summary(Table()) == "nothing is blocked"


def test_the_document_lists_every_counter() -> None:
    live = replace(MAIL, counters={**MAIL.counters, "mail.output.tcp.25": Counter("mail.output.tcp.25", 5, 300)})
    found = document(judge(live, MAIL), live, seen={"mail.output.tcp.25": 1.0}, at=2.0)
    assert found["state"] == "protected"
    assert found["ports"][0] == {
        "block": "mail", "hook": "output", "protocol": "tcp", "port": 25, "packets": 5, "bytes": 300, "last_seen": 1.0,
    }  # fmt: skip
    assert [row["port"] for row in found["ports"]] == [25, "1000-2000", 25, "1000-2000"]


def test_the_picture_fits_80_columns_and_says_everything() -> None:
    live = replace(
        MAIL, counters={**MAIL.counters, "mail.output.tcp.25": Counter("mail.output.tcp.25", 123456789, 98765432100)}
    )
    text = "tcp 203.0.113.7:25 from ss-server (shadowsocks.service, uid 998); very likely for its client 198.51.100.4"
    daemon = {
        "pid": 7,
        "owner": True,
        "repairs": 1,
        "attempts": 2,
        "attempts_lost": 3,
        "records_dropped": 4,
        "last_attempt": {"at": 3600.0, "text": text},
        "since": 3600.0,
        "log": "kernel",
        "suspended": "until 10:00:00",
    }
    found = document(
        judge(live, MAIL, ("x.toml: refused",)),
        live,
        seen={"mail.output.tcp.25": 1.0},
        warnings=("beware",),
        daemon=daemon,
        at=1.0 + 3 * 3600,
    )
    lines = render(found, Look(80))
    assert lines[0] == "degraded: 1,002 tcp ports blocked on output, 1,002 tcp ports blocked on forward"
    assert "  - x.toml: refused" in lines
    assert "  warning: beware" in lines
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(3600))
    assert f"daemon: process 7, owns the table, since {since}" in lines
    assert "since then: 1 repair, 2 attempts seen" in lines
    assert 'attempts are not recorded here, but in journalctl -k: [log] target is "kernel"' in lines
    assert "lost: 3 attempts, 4 records" in lines
    assert "last attempt: 2 h ago, tcp 203.0.113.7:25 from ss-server (shadowsocks.service," in lines
    assert "  uid 998); very likely for its client 198.51.100.4" in lines
    assert "suspended: until 10:00:00" in lines
    assert max(map(len, lines)) <= 80
    assert "last attempt: 2 h ago, " + text in render(found), "in a pipe, one line that grep finds"
    row = next(line for line in lines if line.startswith("mail"))
    assert row.split() == ["mail", "output", "tcp", "25", "123456789", "98765432100", "3", "h", "ago"]
