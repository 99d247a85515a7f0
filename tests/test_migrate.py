"""What other firewalls block, read and written as a configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nftguard import cli_migrate
from nftguard.errors import NftguardError
from nftguard.migrate import leftovers
from nftguard.model import Action, Hook, Protocol
from tests.examples import config_of

if TYPE_CHECKING:
    from click.testing import Result

    from nftguard.config import Block

DATA = Path(__file__).parent / "migrate"
ORIGIN = DATA / "iptables.banmailports.rules"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder of the test's own, in which nothing is left of older set-ups."""
    monkeypatch.setattr(cli_migrate, "ROOT", tmp_path)
    return tmp_path


def run(text: str) -> Result:
    return CliRunner().invoke(cli_migrate.import_, ["-"], input=text)


def blocks(text: str) -> list[Block]:
    """Import what can be translated whole."""
    done = run(text)
    assert done.exit_code == 0, (done.exception, done.stderr)
    return [*config_of(done.stdout).block]


def rules(*lines: str, policy: str = "ACCEPT") -> str:
    return "\n".join(["*filter", f":OUTPUT {policy} [0:0]", *lines, "COMMIT", ""])


def findings(text: str) -> list[tuple[int, str]]:
    """List the lines that were not translated, with why."""
    done = run(text)
    assert done.exit_code == 1, done.stderr
    return [
        (int(line), why) for line, why in re.findall(r"^nftguard: line (\d+): .*\n    (.*)$", done.stderr, re.MULTILINE)
    ]


def ports(block: Block) -> list[str]:
    return [*map(str, block.resolved())]


def test_the_origins_file_is_one_block_of_its_eleven_ports() -> None:
    done = CliRunner().invoke(cli_migrate.import_, [str(ORIGIN)])
    assert done.exit_code == 0
    (block,) = config_of(done.stdout).block
    assert ports(block) == ["21", "22", "23", "25", "109", "110", "143", "465", "587", "993", "995"]
    assert (block.hooks, block.protocols, block.action) == ((Hook.OUTPUT,), (Protocol.TCP,), Action.DROP)
    assert "rules left alone: 12 that log, 1 that repeat others, or that no packet reaches" in done.stderr
    assert "nftguard check" in done.stdout


def test_the_lines_that_keep_the_old_log_are_taken_as_they_stand() -> None:
    text = run(ORIGIN.read_text()).stdout
    at = text.index("# [log]")
    log = config_of(text[:at] + re.sub(r"^# ", "", text[at:], flags=re.MULTILINE)).log
    assert (log.target, log.prefix.format(port=25)) == ("kernel", "IPTABLES TCP-OUT 25:")


def test_the_same_rules_from_iptables_commands_and_listings_are_the_same_blocks() -> None:
    lines = ["-p tcp -m tcp --dport 25 -j DROP", "-p udp -m multiport --dports 25,100:200 -j DROP"]
    forms = [
        rules(*(f"-A OUTPUT {line}" for line in lines)),
        rules(*(f"[3:180] -A OUTPUT {line}" for line in lines)),
        rules(*(f"-I OUTPUT {line}" for line in lines)),
        "-P OUTPUT ACCEPT\n" + "\n".join(f"-A OUTPUT {line}" for line in lines),
        "#!/bin/sh\n" + "\n".join(f"sudo /sbin/iptables -w -t filter -A OUTPUT {line}" for line in lines),
        "\n".join(f"ipv4 filter OUTPUT 0 {line}" for line in lines),
        "<direct>"
        + "\n".join(f'<rule ipv="ipv4" table="filter" chain="OUTPUT">{line}</rule>' for line in lines)
        + "</direct>",
    ]
    found = [[(ports(block), block.protocols) for block in blocks(form)] for form in forms]
    assert found[0] == [(["25"], (Protocol.TCP,)), (["25", "100-200"], (Protocol.UDP,))]
    assert all(sorted(form) == sorted(found[0]) for form in found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--dport 25", ["25"]),
        ("--dport smtp", ["25"]),
        ("--dport 20:23", ["20", "21", "22", "23"]),
        ("--dport 6000:6063", ["6000-6063"]),
        ("--dport :100", ["1-100"]),
        ("--dport 65000:", ["65000-65535"]),
        ("-m multiport --dports 25,587,6000:6063", ["25", "587", "6000-6063"]),
        ("! --dport 80", ["1-79", "81-65535"]),
        ("-m multiport ! --dports 80,443", ["1-79", "81-442", "444-65535"]),
    ],
)  # fmt: skip
def test_ports_are_read_in_every_form(line: str, expected: list[str]) -> None:
    (block,) = blocks(rules(f"-A OUTPUT -p tcp {line} -j DROP"))
    assert ports(block) == expected


@pytest.mark.parametrize(
    ("line", "key", "values"),
    [
        ("-d 198.51.100.7", "to", ["198.51.100.7"]),
        ("-d 10.1.2.3/8", "to", ["10.0.0.0/8"]),
        ("-d 10.1.2.3/255.0.0.0", "to", ["10.0.0.0/8"]),
        ("-d 10.0.0.1,smtp.example.org", "to", ["10.0.0.1", "smtp.example.org"]),
        ("-d 2001:db8::/32", "to", ["2001:db8::/32"]),
        ("-m iprange --dst-range 10.0.0.2-10.0.0.5", "to", ["10.0.0.2/31", "10.0.0.4/31"]),
        ("-s 10.0.0.0/8", "from_", ["10.0.0.0/8"]),
        ("-o lo", "interfaces", ["lo"]),
        ("-o wg+", "interfaces", ["wg*"]),
        ("-m owner --uid-owner 0", "users", ["root"]),
        ("-m owner --uid-owner 54321", "users", ["54321"]),
        ("-m owner --gid-owner mail", "groups", ["mail"]),
    ],
)
def test_an_accept_before_a_drop_is_an_exception_of_its_block(line: str, key: str, values: list[str]) -> None:
    for target in ("ACCEPT", "RETURN"):
        (block,) = blocks(rules(f"-A OUTPUT {line} -j {target}", "-A OUTPUT -p tcp --dport 25 -j DROP"))
        assert [*getattr(block.allow, key)] == values
    if "," not in line:
        option = line.split()[-2]
        negated = line.replace(option, f"! {option}")
        (block,) = blocks(rules(f"-A OUTPUT -p tcp --dport 25 {negated} -j DROP"))
        assert [*getattr(block.allow, key)] == values, "to block all but these is the same"


def test_an_accept_of_one_port_is_no_exception_for_another() -> None:
    found = blocks(
        rules(
            "-A OUTPUT -p tcp -d 192.0.2.1 --dport 587 -j ACCEPT",
            "-A OUTPUT -p tcp -m multiport --dports 25,587 -j DROP",
        )
    )
    assert [(ports(block), block.allow.to) for block in found] == [(["25"], ()), (["587"], ("192.0.2.1",))]


def test_an_accept_of_what_no_drop_stops_is_no_matter() -> None:
    found = blocks(
        rules("-A OUTPUT -p tcp ! -d 192.0.2.1 ! --syn -j ACCEPT", "-A OUTPUT -p tcp --dport 25 --syn -j DROP")
    )
    assert [(ports(block), block.connections, block.allow.to) for block in found] == [(["25"], "new", ())]


def test_a_block_within_another_is_told_as_a_repetition() -> None:
    line = "-A OUTPUT -p tcp --dport 25 ! -o lo"
    text = rules(f"{line} -j DROP", f"{line} -j DROP", f"{line} ! -d 192.0.2.1 -j DROP")
    (block,) = blocks(text)
    assert (block.allow.to, block.allow.interfaces) == ((), ("lo",))
    assert "2 that repeat others" in run(text).stderr


def test_an_accept_of_two_things_at_once_is_two_blocks() -> None:
    found = blocks(rules("-A OUTPUT -d 192.0.2.1 -o eth0 -j ACCEPT", "-A OUTPUT -p tcp --dport 25 -j DROP"))
    assert {(block.allow.to, block.allow.interfaces) for block in found} == {(("192.0.2.1",), ()), ((), ("eth0",))}
    assert {*map(tuple, map(ports, found))} == {("25",)}


def test_a_policy_that_drops_blocks_all_but_what_is_let_pass() -> None:
    text = rules("-A OUTPUT -p tcp -m multiport --dports 80,443 -j ACCEPT", policy="DROP")
    assert findings(text) == [(2, "partly translated: protocols without ports, like ICMP and GRE, are not blocked")]
    found = {block.protocols: ports(block) for block in config_of(run(text).stdout).block}
    assert found == {
        (Protocol.TCP,): ["1-79", "81-442", "444-65535"],
        (Protocol.UDP, Protocol.SCTP, Protocol.DCCP): ["1-65535"],
    }


def test_chains_are_followed() -> None:
    (block,) = blocks(
        rules(
            ":mail - [0:0]",
            ":inner - [0:0]",
            "-A OUTPUT -p tcp -j mail",
            "-A mail -d 192.0.2.1 -j RETURN",
            "-A mail -p tcp --dport 25 -g inner",
            "-A inner -o lo -j RETURN",
            "-A inner -j REJECT --reject-with icmp-port-unreachable",
        )
    )
    assert (ports(block), block.action) == (["25"], Action.REJECT)
    assert (block.allow.to, block.allow.interfaces) == (("192.0.2.1",), ("lo",))


def test_only_what_opens_a_connection_is_blocked_where_the_rules_say_so() -> None:
    for line in (
        "--syn",
        "--tcp-flags FIN,SYN,RST,ACK SYN",
        "-m state --state NEW",
        "-m conntrack ! --ctstate ESTABLISHED",
    ):
        (block,) = blocks(rules(f"-A OUTPUT -p tcp --dport 25 {line} -j DROP"))
        assert block.connections == "new"
    (block,) = blocks(
        rules("-A OUTPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", "-A OUTPUT -p tcp --dport 25 -j DROP")
    )
    assert block.connections == "new"


def test_blocks_are_called_as_the_comments_of_their_rules() -> None:
    done = run(
        rules(
            '-A OUTPUT -p tcp --dport 23 -m comment --comment "no telnet, ever" -j DROP',
            "-A OUTPUT -p udp --dport 19 -m comment --comment 19 -j DROP",
            "-A OUTPUT -p tcp --dport 25 -m comment --comment bridge -j REJECT",
        )
    )
    assert {block.name for block in config_of(done.stdout).block} == {"no-telnet-ever", "output", "bridge-2"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-d 192.0.2.1 -p tcp --dport 25 -j DROP", "not only what is to 192.0.2.1"),
        ("-p tcp --sport 25 -j DROP", "the port it is sent from (25)"),
        ("-p tcp --dport 25 -m limit --limit 1/s -j DROP", "the match 'limit'"),
        ("-p tcp --dport 25 -m owner --uid-owner 100-200 -j DROP", "the owners 100-200"),
        ("-p tcp --dport 25 ! -d 10.0.0.1/255.0.255.0 -j DROP", "the address 10.0.0.1/255.0.255.0"),
        ("-p udp --dport 25 -m state --state NEW -j DROP", "a udp datagram opens nothing"),
        ("-p icmp -j DROP", "protocols without ports"),
        ("-p tcp --dport 25 -j NFQUEUE --queue-num 1", "what NFQUEUE does"),
        ("-p tcp --dport 25 -j nowhere", "what nowhere does"),
        ("-p tcp --dport nonsense-port -j DROP", "no service"),
        ("-p tcp --dport 99999 -j DROP", "port"),
        ("-p tcp --dport", "--dport has no value"),
        ('-p tcp --dport 25 -m comment --comment "open -j DROP', "cannot be read"),
        ("-m state --state INVALID -j DROP", "the connection state INVALID"),
        ("-p tcp ! --syn -m state --state NEW -j DROP", "no connection that is known"),
        ("-p tcp --dport 0 -j DROP", "port 0"),
    ],
)
def test_what_cannot_be_translated_is_named_with_its_line_and_the_rest_is_printed(line: str, why: str) -> None:
    text = rules(f"-A OUTPUT {line}", "-A OUTPUT -p tcp --dport 26 -j DROP")
    ((number, told),) = findings(text)
    assert number == 3
    assert why in told
    assert [ports(block) for block in config_of(run(text).stdout).block] == [["26"]]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("! -o lo -j ACCEPT", "what is not leaving by lo"),
        ("-m set --match-set good dst -j ACCEPT", "the match 'set'"),
        ("-p tcp --sport 80 -j ACCEPT", "the port it is sent from (80)"),
    ],
)
def test_an_exception_that_cannot_be_translated_is_named_and_the_port_blocked_all_the_same(line: str, why: str) -> None:
    text = rules(f"-A OUTPUT {line}", "-A OUTPUT -p tcp --dport 25 -j DROP")
    ((number, told),) = findings(text)
    assert (number, why in told, "so tcp is blocked for it too" in told) == (3, True, True)
    (block,) = config_of(run(text).stdout).block
    assert block.allow.interfaces == ()


def test_what_blocks_in_another_table_is_named_and_what_does_not_is_left_alone() -> None:
    text = "*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp --dport 24 -j DROP\nCOMMIT\n"
    text += "*nat\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    text += rules("-A OUTPUT -p tcp --dport 25 -j DROP", "-A OUTPUT -p tcp --dport 80 -j ACCEPT")
    assert findings(text) == [
        (3, "not translated: it blocks in the table raw; nftguard blocks as the table filter does")
    ]
    assert "left alone: 1 of the table nat, 1 that let pass what nothing blocks" in run(text).stderr


def test_forwarded_and_incoming_packets_have_blocks_of_their_hook() -> None:
    line = "-p tcp --dport 25 -j DROP"
    (block,) = blocks(f"*filter\n-A OUTPUT {line}\n-A FORWARD {line}\nCOMMIT\n")
    assert block.hooks == (Hook.OUTPUT, Hook.FORWARD)
    (block,) = blocks(f"*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT {line}\nCOMMIT\n")
    assert (block.hooks, block.allow.interfaces) == ((Hook.INPUT,), ("lo",))
    ((_, why),) = findings(f"*filter\n-A FORWARD -i docker0 {line}\nCOMMIT\n")
    assert 'hooks = ["forward"]' in why


USER_RULES = """*filter
:ufw-user-input - [0:0]
:ufw-user-output - [0:0]
:ufw-user-forward - [0:0]
:ufw-user-limit - [0:0]
### RULES ###

### tuple ### allow tcp 25 198.51.100.7 any 0.0.0.0/0 out
-A ufw-user-output -p tcp -d 198.51.100.7 --dport 25 -j ACCEPT

### tuple ### deny any 25 0.0.0.0/0 any 0.0.0.0/0 out
-A ufw-user-output -p tcp --dport 25 -j DROP
-A ufw-user-output -p udp --dport 25 -j DROP

### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 22 -j ACCEPT
### END RULES ###
-A ufw-user-limit -j REJECT
COMMIT
"""
STATUS = """Status: active

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere
198.51.100.7 25/tcp        ALLOW OUT   Anywhere
25                         DENY OUT    Anywhere                   # spam
22/tcp (v6)                ALLOW IN    Anywhere (v6)
25 (v6)                    DENY OUT    Anywhere (v6)              # spam
"""
ADDED = """Added user rules (see 'ufw status' for running firewall):
ufw allow 22/tcp
ufw allow out to 198.51.100.7 port 25 proto tcp
ufw deny out 25 comment 'spam'
"""


@pytest.mark.parametrize(
    "text",
    [USER_RULES, USER_RULES.replace("ufw-", "ufw6-"), STATUS, ADDED],
    ids=["user.rules", "user6.rules", "status", "added"],
)
def test_ufw_is_read_in_each_of_its_forms(text: str) -> None:
    """By itself ufw lets pass what goes over lo, and open connections."""
    tcp, udp = sorted(blocks(text), key=lambda block: block.protocols)
    assert (ports(tcp), ports(udp)) == (["25"], ["25"])
    assert (tcp.allow.to, tcp.allow.interfaces, tcp.connections) == (("198.51.100.7",), ("lo",), "new")
    assert (udp.allow.to, udp.allow.interfaces, udp.connections) == ((), ("lo",), "all")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Mail submission            DENY OUT    Anywhere", "the name of an application"),
        ("22/tcp                     LIMIT IN    Anywhere", "it limits"),
        ("198.51.100.7 26/tcp        DENY OUT    Anywhere", "not only what is to 198.51.100.7"),
        ("?!", "no line of ufw's"),
        (f"25{' ' * 5000}DENY{' ' * 5000}", "no line of ufw's"),
    ],
)
def test_what_ufw_has_and_nftguard_has_not_is_named(line: str, why: str) -> None:
    ((number, told),) = findings(f"{STATUS}{line}\n")
    assert (number, why in told) == (10, True), told


def test_ufw_shows_long_addresses_interfaces_and_applications_in_the_same_columns() -> None:
    allow = "2001:db8:1234:5678::/64 25/tcp ALLOW OUT   Anywhere (v6) on eth0      (log, out)"
    deny = "[ 2] 25,465/tcp (Postfix)      REJECT OUT  Anywhere                   (log)"
    route = "587/tcp on wg0             ALLOW FWD   Anywhere\n587/tcp                    DENY FWD    Anywhere/tcp"
    both = [line.replace("Anywhere", "Anywhere (v6)") for line in (deny, *route.splitlines())]
    found = blocks("\n".join(["Status: active", allow, deny, route, *both]))
    allowed = {(*ports(block), *block.hooks): (block.allow.to, block.allow.interfaces) for block in found}
    assert {key: value for key, value in allowed.items() if "25" not in key} == {
        ("465", Hook.OUTPUT): ((), ("lo",)),
        ("587", Hook.FORWARD): ((), ("wg0",)),
    }
    assert {(block.allow.to, block.allow.interfaces) for block in found if ports(block) == ["25"]} == {
        (("2001:db8:1234:5678::/64",), ("lo",)),
        ((), ("eth0", "lo")),
    }


def test_what_iptables_lists_of_ufw_is_read_from_its_beginning() -> None:
    (block,) = blocks(
        rules(
            ":ufw-before-output - [0:0]",
            ":ufw-user-output - [0:0]",
            "-A OUTPUT -j ufw-before-output",
            "-A ufw-before-output -o lo -j ACCEPT",
            "-A ufw-before-output -j ufw-user-output",
            "-A ufw-user-output -p tcp --dport 25 -j DROP",
        )
    )
    assert (ports(block), block.connections, block.allow.interfaces) == (["25"], "all", ("lo",))


def test_ufw_commands_are_read_in_all_their_words() -> None:
    first, second = blocks(
        "ufw allow out on wg0\nufw reject out log proto tcp from any to any port 6000:6063\n"
        "ufw route deny to any port 25 proto tcp\n"
    )
    assert (ports(first), first.hooks, first.action) == (["6000-6063"], (Hook.OUTPUT,), Action.REJECT)
    assert first.allow.interfaces == ("lo", "wg0")
    assert (ports(second), second.hooks) == (["25"], (Hook.FORWARD,))
    ((_, why),) = findings("ufw reject out on eth1 proto tcp to any port 25\nufw reject out 26/tcp\n")
    assert "not only what is leaving by eth1" in why


POLICY = """<?xml version="1.0" encoding="utf-8"?>
<policy priority="-1" target="CONTINUE">
  <short>no mail</short>
  <ingress-zone name="HOST"/>
  <egress-zone name="ANY"/>
  <service name="smtp-submission"/>
  <rule family="ipv4" priority="-5">
    <destination address="198.51.100.7"/>
    <port port="25" protocol="tcp"/>
    <accept/>
  </rule>
  <rule><port port="25" protocol="tcp"/><log prefix="MAIL "/><reject/></rule>
  <rule><service name="smtp"/><drop/></rule>
</policy>
"""


def test_a_firewalld_policy_for_what_the_host_sends_is_read() -> None:
    (block,) = blocks(POLICY)
    assert (ports(block), block.action, block.allow.to) == (["25"], Action.REJECT, ("198.51.100.7",))


def test_what_firewalld_has_and_nftguard_has_not_is_named_by_its_line() -> None:
    text = POLICY.replace("  <short>", "  <masquerade/>\n  <short>").replace('"smtp"', '"ntp"')
    assert findings(text) == [
        (3, "not translated: <masquerade> has no counterpart"),
        (14, "not translated: the service 'ntp' is not known here; write its ports"),
    ]


def test_direct_rules_are_tried_by_priority() -> None:
    (block,) = blocks("ipv4 filter OUTPUT 5 -p tcp --dport=25 -j DROP\nipv4 filter OUTPUT 0 -d 192.0.2.1 -j ACCEPT\n")
    assert block.allow.to == ("192.0.2.1",)
    assert findings("ipv4 filter OUTPUT 0 -p tcp --dport 25 -j DROP\neb filter OUTPUT 0 -j DROP\n")[0][0] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rules of iptables, ufw or firewalld"),
        ("table inet filter {\n}\n", "no rules of iptables, ufw or firewalld"),
        ("*filter\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "nothing in it that nftguard could block"),
        ("<zone><service name='ssh'/></zone>", "blocks nothing that goes out"),
        ("<policy>", "the XML cannot be read"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>\n<policy>&a;</policy>', "a document type"),
        ("<" * 100_000, "the XML cannot be read"),
    ],
)
def test_what_is_no_set_of_rules_is_one_clear_line(text: str, says: str) -> None:
    done = run(text)
    assert isinstance(done.exception, NftguardError)
    assert says in str(done.exception)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "line",
    [
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP; iptables -A OUTPUT -p udp --dport 26 -j DROP",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP && iptables -w 5 -A OUTPUT -p udp --dport 26 -j DROP # x",
        "iptables -AOUTPUT -ptcp --dport 25 -jDROP 2>/dev/null || true;iptables -A OUTPUT -pudp --dport=26 -j DROP||:",
    ],
)
def test_each_command_of_a_line_is_read(line: str) -> None:
    tcp, udp = blocks(line)
    assert (ports(tcp), ports(udp), udp.protocols) == (["25"], ["26"], (Protocol.UDP,))


@pytest.mark.parametrize(
    "line",
    [
        "iptables -C OUTPUT -p tcp --dport 25 -j DROP || iptables -A OUTPUT -p tcp --dport 25 -j DROP",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP | tee log",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP && echo done",
        "iptables -A $CHAIN -p tcp --dport 25 -j DROP",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP -A OUTPUT -p udp --dport 26 -j DROP",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROP -j ACCEPT",
        "iptables -A OUTPUT -p tcp --dport 25 DROP",
        "iptables -A OUTPUT -p tcp --dport 25 -j DROPP",
        "iptables -A OUTPUT -p tcp --dport 25 -j my-logging-drop",
        "iptables -A OUTPUT -p tcp -m tcp --dport 25 -m multiport --dports 26 -j DROP",
        "iptables -A DOCKER-USER -p tcp --dport 25 -j DROP",
        "iptables -6 -A OUTPUT -p tcp --dport 25 -j DROP",
        "iptables -P OUTPUT DROPP",
        "-A OUTPUT -p tcp --dport 25 -j DROP; -A OUTPUT -p tcp --dport 26 -j DROP",
        "-A OUTPUT -p tcp --dport 25 -j DROP;",
    ],
)
def test_a_line_that_may_block_and_cannot_be_read_is_named(line: str) -> None:
    text = f"{line}\niptables -A OUTPUT -p tcp --dport 80 -j DROP\n"
    assert [number for number, _ in findings(text)][:1] == [1]
    assert [ports(block) for block in config_of(run(text).stdout).block] == [["80"]]


def test_an_option_after_the_target_still_narrows_an_accept() -> None:
    text = rules("-A OUTPUT -m owner -j ACCEPT --socket-exists", "-A OUTPUT -p tcp --dport 25 -j DROP")
    ((_, why),) = findings(text)
    assert "--socket-exists" in why
    assert "ports = [25]" in run(text).stdout


DOCKER = """*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -p tcp --dport 25 -j DROP
COMMIT
"""


def test_a_default_that_denies_is_left_out_where_what_it_lets_pass_cannot_be_said() -> None:
    why = (
        "not translated, so not blocked: what lines 5, 6 and 7 let pass cannot be said here; name the ports to block, "
    )
    assert findings(DOCKER) == [(2, f'{why}as in ports = ["@mail"], hooks = ["forward"]')]
    (block,) = config_of(run(DOCKER).stdout).block
    assert (ports(block), block.hooks, block.protocols) == (["25"], (Hook.FORWARD,), (Protocol.TCP,))


def test_what_a_lost_default_would_have_made_needless_is_kept() -> None:
    """A block of one port with an exception is within the default of all ports without; the default goes, it stays."""
    text = rules(
        "-A OUTPUT -p tcp --dport 25 ! -o lo -j DROP", "-A OUTPUT -m set --match-set x dst -j ACCEPT", policy="DROP"
    )
    assert [number for number, _ in findings(text)] == [2]
    (block,) = config_of(run(text).stdout).block
    assert (ports(block), block.allow.interfaces) == (["25"], ("lo",))


def test_an_exception_that_is_lost_for_several_protocols_is_named_once() -> None:
    text = rules(
        "-A OUTPUT ! -o lo -j ACCEPT", "-A OUTPUT -p tcp --dport 25 -j DROP", "-A OUTPUT -p udp --dport 25 -j DROP"
    )
    ((number, why),) = findings(text)
    assert (number, "so tcp and udp are blocked for it too" in why) == (3, True)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        (ADDED + "ufw route deny 26/tcp\n", ["ufw delete deny out 25", "ufw route delete deny 26/tcp"]),
        (USER_RULES, ["ufw delete deny out from any to any port 25"]),
        (STATUS, ["ufw status numbered", "ufw delete NUMBER"]),
        (
            "ipv6 filter OUTPUT 1 -p tcp --dport 25 -j DROP\nipv4 filter OUTPUT 0 -o lo -j ACCEPT\n",
            [
                "firewall-cmd --permanent --direct --remove-rule ipv6 filter OUTPUT 1 -p tcp --dport 25 -j DROP",
                "firewall-cmd --reload",
            ],
        ),
        (
            POLICY,
            [
                "firewall-cmd --permanent --policy=NAME --remove-rich-rule='rule service name=\"smtp\" drop'",
                "firewall-cmd --reload",
            ],
        ),
    ],
)
def test_the_commands_that_delete_the_old_rules_are_those_of_their_firewall(text: str, commands: list[str]) -> None:
    told = run(text).stderr
    assert "iptables -D" not in told
    for command in commands:
        assert f"\n      {command}" in told, told


def test_a_policy_is_called_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "no-mail.xml").write_text(POLICY)
    done = CliRunner().invoke(cli_migrate.import_, [str(tmp_path / "no-mail.xml")])
    assert "--policy=no-mail --remove-rich-rule" in done.stderr


def test_a_rule_of_a_policy_for_one_family_does_not_hide_the_others() -> None:
    rule = '<rule{}><port port="25" protocol="tcp"/><{}/></rule>'
    body = rule.format(' family="ipv4" priority="-1"', "accept") + "\n" + rule.format("", "drop")
    done = run(f'<policy>\n<ingress-zone name="HOST"/><egress-zone name="ANY"/>\n{body}\n</policy>\n')
    assert "ports = [25]" in done.stdout
    assert "blocked over IPv4 too" in done.stderr


def test_lines_are_wrapped_on_a_terminal_and_whole_in_a_pipe() -> None:
    """But not the commands, which are copied."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as read, os.fdopen(theirs, "wb", buffering=0) as terminal:
        command = [sys.executable, "-m", "nftguard", "import", "-"]
        done = subprocess.run(
            command, input=DOCKER.encode(), stdout=subprocess.PIPE, stderr=terminal, timeout=60, check=False
        )
        shown = read.read(65536).decode().splitlines()
    assert done.returncode == 1
    assert max(map(len, shown)) <= 80
    assert any(line.startswith("      ") and "hooks" in line for line in shown)
    assert max(map(len, run(DOCKER).stderr.splitlines())) > 80


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"#" * (cli_migrate.MAX_FILE + 1))
    done = CliRunner().invoke(cli_migrate.import_, [str(tmp_path / "big")])
    assert "larger than 4 MiB" in str(done.exception)


def test_chains_that_jump_to_each_other_end() -> None:
    jumps = [f"-A c{level} -j c{level + 1}\n-A c{level} -j c{level + 1}" for level in range(15)]
    done = run(
        rules("-A OUTPUT -j c0", *jumps, *(f"-A c15 -p tcp --dport {port} -j DROP" for port in range(1, 999, 2)))
    )
    assert "too intertwined" in str(done.exception)
    assert findings(rules("-A OUTPUT -j a", "-A a -j a", "-A OUTPUT -p tcp --dport 25 -j DROP"))[0][0] == 4


def test_ten_thousand_rules_are_no_work() -> None:
    lines = [f"-A OUTPUT -p tcp --dport {port} -j DROP" for port in range(1, 20000, 2)]
    (block,) = blocks(rules(*lines))
    assert len(block.resolved()) == 10000


_WORDS = (
    *(
        "*filter",
        "*",
        ":OUTPUT DROP",
        ":x",
        "-A OUTPUT",
        "-A",
        "-p",
        "tcp",
        "--dport",
        "25",
        "!",
        "-j",
        "DROP",
        "x",
        "\n",
    ),
    *("\n", '"', "-I OUTPUT 99999999999", "-m", "set", "-d", "::1", "--syn", "--ctstate", "-P", "\x00", "\u202e"),
    *("ufw ", "deny", "out", "### tuple ###", "ipv4 filter OUTPUT 0 ", "<rule>", "&", "To  DENY OUT  Anywhere", "="),
    *("--dport=", "9" * 400, "--log-prefix", "{", "'$", "-s", "10.0.0.0/99", "-o", "+", "\ud800", "²"),
)


@given(st.lists(st.sampled_from(_WORDS), max_size=40))
def test_no_file_ends_in_a_traceback(words: list[str]) -> None:
    text = "*filter\n" + " ".join(words).replace(" \n ", "\n")
    lines = text.splitlines()
    try:
        toml = cli_migrate.translated("x", cli_migrate.read("x", lines))[0]
    except NftguardError:
        return
    if toml:
        config_of(toml)


def test_what_would_still_load_and_filter_the_old_rules_is_told_with_the_commands(root: Path) -> None:
    hook = root / "etc/network/if-pre-up.d/iptables"
    filters = root / "etc/rsyslog.d/my-iptables.conf"
    saved = root / "etc/iptables.up.rules"
    for path, text in (
        (hook, "#!/bin/bash\n/sbin/iptables-restore < /etc/iptables.up.rules\n"),
        (saved, ORIGIN.read_text()),
        (filters, ':msg, contains, "IPTABLES TCP-OUT" -/var/log/iptables.log\n'),
        (root / "etc/rsyslog.d/50-default.conf", "*.* /var/log/syslog\n"),
        (root / "etc/iptables/rules.v4", ORIGIN.read_text()),
        (root / "etc/network/if-pre-up.d/other", "#!/bin/sh\nethtool\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    told = CliRunner().invoke(cli_migrate.import_, [str(ORIGIN)]).stderr
    assert "rm /etc/network/if-pre-up.d/iptables" not in told, "it is not executable: run-parts passes it over"
    hook.chmod(0o755)
    done = CliRunner().invoke(cli_migrate.import_, [str(ORIGIN)])
    assert done.exit_code == 0
    for command in (
        "rm /etc/network/if-pre-up.d/iptables",
        "mv /etc/iptables.up.rules /etc/iptables.up.rules.old",
        "mv /etc/rsyslog.d/my-iptables.conf /etc/rsyslog.d/my-iptables.conf.off && systemctl restart rsyslog",
        "systemctl disable netfilter-persistent",
        "iptables-legacy -S",
    ):
        assert command in done.stderr
    assert "50-default" not in done.stderr
    assert "if-pre-up.d/other" not in done.stderr


def test_nothing_is_told_of_a_host_without_leftovers(root: Path) -> None:
    assert leftovers.advice(root, ["IPTABLES TCP-OUT 25:"]) == []
    (root / "etc").mkdir()
    (root / "etc/rc.local").mkdir()
    assert leftovers.advice(root, [""]) == []
