"""The walk through a table: what decides, what might, and what cannot be said.

That it goes where the kernel goes is shown by test_verdicts.py, with packets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nftguard import policy
from nftguard.allow import Allowance
from nftguard.host import Host
from nftguard.model import (
    BRIDGE,
    OWNED,
    Base,
    Chain,
    Foreign,
    Hook,
    Key,
    Limit,
    Protocol,
    Rule,
    Set,
    Table,
    Update,
    Verdict,
)
from nftguard.network import Network
from nftguard.packet import Packet
from nftguard.trace import Step, walk
from tests.examples import config_of, table_of

MAIL = '[[block]]\nname = "mail"\nports = [25, 465]\n'
HOST = Host(
    Network(frozenset({"eth0"}), frozenset({"docker0"}), frozenset({"port0"}), frozenset({"tap0"})),
    users={"postfix": 104},
    groups={"mail": 8},
    units={"postfix.service": {"77": "system.slice/postfix.service"}},
)


def packet(port: int = 25, **known: Any) -> Packet:
    return replace(Packet(Hook.OUTPUT, Protocol.TCP, "203.0.113.7", port), **known)


def table(text: str, *allowances: Allowance) -> Table:
    return policy.build(config_of(text), host=HOST, allowances=allowances)


def found(step: Step) -> list[tuple[str, str]]:
    return [(hit.name, element) for hit in step.hits for element in hit.elements]


def with_rules(made: Table, chain: str, *rules: Rule, base: Base | None = None) -> Table:
    """The table as somebody else has changed it: other rules at the beginning of a chain."""
    there = made.chains.get(chain, Chain(chain, base=base))
    return replace(made, chains={**made.chains, chain: replace(there, rules=(*rules, *there.rules))})


def test_a_blocked_packet_is_told_with_block_chain_rule_and_counter() -> None:
    trace = walk(table_of(MAIL), packet(465))
    assert trace.passes is False
    (step,) = trace.steps
    assert (step.block, step.chain, step.text, step.counter) == (
        "mail",
        "mail.output.tcp",
        "drop",
        "mail.output.tcp.465",
    )


@pytest.mark.parametrize(
    "other", [{"port": 26}, {"protocol": Protocol.UDP}, {"hook": Hook.INPUT}, {"hook": Hook.BRIDGE}]
)
def test_what_no_block_names_passes_unasked(other: dict[str, Any]) -> None:
    trace = walk(table_of(MAIL), packet(**other))
    assert (trace.passes, trace.steps) == (True, ())


@pytest.mark.parametrize(
    ("allowed", "known", "name", "element", "text"),
    [
        ('users = ["postfix"]', {"uid": 104}, "users", "104", "meta skuid @mail.users return"),
        ('groups = ["mail"]', {"gid": 8}, "groups", "8", "meta skgid @mail.groups return"),
        ('to = ["203.0.113.0/24"]', {}, "to4", "203.0.113.0/24", "ip daddr @mail.to4 return"),
        ('to = ["203.0.113.6", "203.0.113.7", "203.0.113.8"]', {}, "to4", "203.0.113.6-203.0.113.8", None),
        ('from = ["10.0.0.1"]', {"source": "10.0.0.1"}, "from4", "10.0.0.1", "ip saddr @mail.from4 return"),
        ('to = ["2001:db8::/32"]', {"destination": "2001:db8::7"}, "to6", "2001:db8::/32", None),
        ('interfaces = ["wg*"]', {"outbound": "wg12"}, "interfaces", "wg*", "oifname @mail.interfaces return"),
    ],
)
def test_an_exception_is_told_with_its_set_and_element(
    allowed: str, known: dict[str, Any], name: str, element: str, text: str | None
) -> None:
    trace = walk(table(f"{MAIL}allow = {{ {allowed} }}"), packet(**known))
    assert trace.passes
    (step,) = trace.steps
    assert found(step) == [(f"mail.{name}", element)]
    assert text in {None, step.text}


def test_a_unit_is_found_at_its_level_and_in_a_listing_without_levels() -> None:
    made = table(f'{MAIL}allow = {{ units = ["postfix.service"] }}')
    unknown = {
        name: replace(chain, rules=tuple(tuple(map(without_level, rule)) for rule in chain.rules))
        for name, chain in made.chains.items()
    }
    for one in (made, replace(made, chains=unknown)):
        assert walk(one, packet(groups=(5, 77, 9))).passes
        assert walk(one, packet(groups=(5, 78))).passes is False
        assert walk(one, packet(groups=())).passes is False
        assert len(walk(one, packet()).unless) == 1, "one exception, however many levels it is looked for at"
    assert walk(made, packet(groups=(5, 77))).steps[0].text == "socket cgroupv2 level 2 @mail.units return"


def without_level(statement: Any) -> Any:
    return replace(statement, level=0) if hasattr(statement, "level") else statement


def test_the_first_block_that_stops_it_ends_the_walk() -> None:
    made = table(
        f'{MAIL}allow = {{ users = ["postfix"] }}\n[[block]]\nname = "b"\nports = ["20-100"]\naction = "reject"\n'
        '[[block]]\nname = "c"\nports = [25]'
    )
    trace = walk(made, packet(uid=104))
    assert [(step.block, step.text) for step in trace.steps] == [
        ("mail", "meta skuid @mail.users return"), ("b", "reject with tcp reset")
    ]  # fmt: skip
    assert trace.steps[1].counter == "b.output.tcp.20-100"
    assert trace.unless == ()


def test_what_is_not_known_fits_nothing_and_is_named() -> None:
    allowed = 'users = ["postfix", "33"], interfaces = ["wg*"], from = ["10.0.0.1"], to = ["198.51.100.1"]'
    made = table(f"{MAIL}allow = {{ {allowed} }}")
    trace = walk(made, packet())
    assert trace.passes is False
    assert [hit.name for step in trace.unless for hit in step.hits] == ["mail.interfaces", "mail.from4", "mail.users"]
    assert trace.unless[2].hits[0].elements == ("104", "33")
    trace = walk(made, packet(uid=1, source="10.0.0.2"))
    assert [hit.name for step in trace.unless for hit in step.hits] == ["mail.interfaces"]
    trace = walk(made, packet(destination="2001:db8::1", uid=1, outbound="eth0"))
    assert (trace.passes, trace.unless) == (False, ()), "of IPv6 none of the addresses is"


def test_what_a_block_that_lets_it_pass_might_look_at_is_not_named() -> None:
    allowed = 'users = ["postfix"], to = ["203.0.113.7"]'
    made = table(f'{MAIL}allow = {{ {allowed} }}\n[[block]]\nname = "b"\nports = [25]\nallow = {{ users = ["33"] }}')
    assert [step.block for step in walk(made, packet()).unless] == ["b"]


def test_a_closed_socket_finishes_and_opens_nothing() -> None:
    made = table(f'{MAIL}allow = {{ users = ["postfix"] }}')
    assert walk(made, packet(owned=False, opens=False)).passes
    assert walk(made, packet(owned=False)).passes is False
    assert walk(made, packet(uid=1, opens=False)).passes is False


def test_forwarded_from_an_uplink_to_the_inside_passes() -> None:
    made = table(f'{MAIL}hooks = ["forward", "bridge"]')
    for hook, outer, inner in ((Hook.FORWARD, "eth0", "docker0"), (Hook.BRIDGE, "port0", "tap0")):
        trace = walk(made, packet(hook=hook, inbound=outer, outbound=inner))
        assert (trace.passes, len(trace.steps[0].hits)) == (True, 2)
        assert walk(made, packet(hook=hook, inbound=inner, outbound=outer)).passes is False
        trace = walk(made, packet(hook=hook, inbound=outer))
        assert (trace.passes, [hit.known for hit in trace.unless[0].hits]) == (False, [True, False])


def test_an_allowance_is_told_with_the_block_that_it_overrides() -> None:
    given = Allowance(Hook.OUTPUT, Protocol.TCP, 25, "users", "postfix", 60)
    made = table(MAIL, given)
    (step,) = walk(made, packet(uid=104)).steps
    assert (step.block, step.chain, step.text) == (
        "mail",
        "allowed.output",
        "meta l4proto . th dport . meta skuid @allowed.output.users accept",
    )
    assert found(step) == [("allowed.output.users", "tcp . 25 . 104")]
    assert walk(made, packet(465, uid=104)).passes is False
    assert found(walk(made, packet()).unless[0]) == [("allowed.output.users", "tcp . 25 . 104")]
    assert walk(made, packet(465)).unless == (), "it is of another port"


def test_connections_that_are_there_go_on() -> None:
    made = table_of(f'{MAIL}connections = "new"')
    (step,) = walk(made, packet(opens=False)).steps
    assert step.text == "tcp flags & (fin | syn | rst | ack) != syn return"
    assert walk(made, packet()).passes is False


@pytest.mark.parametrize("target", ["journal", "kernel", "none"])
def test_the_log_decides_nothing(target: str) -> None:
    made = table_of(f'{MAIL}[log]\ntarget = "{target}"')
    assert walk(made, packet()).passes is False


@pytest.mark.parametrize(
    ("chain", "rule", "word"),
    [
        ("mail.output.tcp", (Foreign("ip ttl 1"), Verdict("accept")), "ip ttl 1"),
        ("output", (Foreign("counter"),), "counter"),
        ("mail.output.tcp.attempt", (Update(Key.USER, "users", Limit(1, "second")), Verdict("accept")), "limit"),
        ("mail.output.tcp", (Update(Key.USER, "users", Limit(1, "second")), Verdict("return")), "limit"),
        ("nat", (Verdict("accept"),), "postrouting"),
    ],
)
def test_where_a_rule_of_another_program_may_decide_nothing_is_said(chain: str, rule: Rule, word: str) -> None:
    trace = walk(with_rules(table_of(MAIL), chain, rule, base=Base("postrouting")), packet())
    assert trace.passes is None
    assert word in trace.reason


def test_a_rule_of_another_program_that_is_not_reached_does_not_matter() -> None:
    made = with_rules(table_of(MAIL), "mail.output.tcp", (Foreign("x"), Verdict("accept")))
    assert walk(made, packet(26)).passes


@pytest.mark.parametrize("element", ["tcp . 104", "x", "1-", ""])
def test_an_element_of_another_program_is_not_guessed_at(element: str) -> None:
    made = table(f'{MAIL}allow = {{ to = ["198.51.100.1"] }}')
    made = replace(made, sets={**made.sets, "mail.to4": Set("mail.to4", ("ipv4_addr",), frozenset({element}))})
    assert walk(made, packet()).passes is None


def test_a_chain_without_its_drop_lets_pass_and_is_told() -> None:
    made = table_of(MAIL)
    made = replace(made, chains={**made.chains, "mail.output.tcp": Chain("mail.output.tcp")})
    trace = walk(made, packet())
    assert (trace.passes, trace.steps) == (True, (Step("mail", "mail.output.tcp", ()),))


def test_a_policy_that_drops_is_told_and_no_block_is_blamed() -> None:
    made = with_rules(table_of(MAIL), "output")
    chain = replace(made.chains["output"], base=Base("output", policy="drop"))
    (step,) = walk(replace(made, chains={**made.chains, "output": chain}), packet(26)).steps
    assert (step.block, step.chain, step.rule) == ("", "output", ())


def test_every_base_chain_of_the_hook_is_asked_in_the_order_of_priority() -> None:
    made = with_rules(table_of(MAIL), "late", (Verdict("drop"),), base=Base("output", 10))
    assert walk(made, packet(26)).steps[0].chain == "late"
    assert walk(made, packet(25)).steps[0].chain == "mail.output.tcp"
    assert walk(made, packet(26, hook=Hook.FORWARD)).passes
    beside = with_rules(table_of(MAIL), f"{BRIDGE}.late", (Verdict("drop"),), base=Base("output"))
    assert walk(beside, packet(26)).passes, "it is a chain of the other family"


def test_a_dormant_table_stops_nothing() -> None:
    trace = walk(replace(table_of(MAIL), flags=frozenset({"dormant"})), packet())
    assert trace.passes
    assert "dormant" in trace.reason


def test_a_table_that_this_nft_cannot_list_is_not_guessed_at() -> None:
    assert walk(Table(flags=OWNED), packet()).passes is None
