"""Replies of several nft versions, and replies that are none."""
# ruff: noqa: E501 - tables of replies read best with one a line

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard import nftjson
from nftguard.model import DynamicSet, Foreign, Initial, Key, Limit, Log, Protocol, Reject, Rule, Table, Update, Verdict
from nftguard.nftjson import MalformedError, parse
from nftguard.ports import Ports

TABLE = {"table": {"family": "inet", "name": "nftguard", "handle": 1}}


def reply(*things: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}, TABLE, *things]})


def rule(*expr: dict[str, Any]) -> Rule:
    chain = {"chain": {"family": "inet", "table": "nftguard", "name": "c", "handle": 2}}
    found = parse(reply(chain, {"rule": {"chain": "c", "handle": 3, "expr": list(expr)}}))
    return found.chains["c"].rules[0]


TCP_FLAGS = {"payload": {"protocol": "tcp", "field": "flags"}}


@pytest.mark.parametrize(
    ("expr", "statement"),
    [
        ({"match": {"op": "==", "left": {"&": [TCP_FLAGS, ["fin", "syn", "rst", "ack"]]}, "right": "syn"}}, Initial(Protocol.TCP)),
        ({"match": {"op": "!=", "left": {"&": [TCP_FLAGS, {"|": ["fin", {"|": ["syn", {"|": ["rst", "ack"]}]}]}]}, "right": "syn"}}, Initial(Protocol.TCP, is_not=True)),
        ({"match": {"op": "==", "left": {"&": [TCP_FLAGS, {"|": ["fin", "syn", "rst", "ack"]}]}, "right": "syn"}}, Initial(Protocol.TCP)),
        ({"match": {"op": "==", "left": {"sctp chunk": {"name": "init"}}, "right": False}}, Initial(Protocol.SCTP, is_not=True)),
        ({"match": {"op": "==", "left": {"sctp chunk": {"name": "init"}}, "right": True}}, Initial(Protocol.SCTP)),
        ({"match": {"op": "!=", "left": {"payload": {"protocol": "dccp", "field": "type"}}, "right": "request"}}, Initial(Protocol.DCCP, is_not=True)),
        ({"log": {"prefix": "x", "level": "info", "flags": "skuid"}}, Log("x", None)),
        ({"log": {"prefix": "x", "level": "info", "flags": ["skuid"]}}, Log("x", None)),
        ({"log": {"prefix": "x", "group": 25}}, Log("x", 25)),
        ({"reject": {"type": "tcp reset"}}, Reject("tcp reset")),
        ({"reject": {"type": "icmpx", "expr": "admin-prohibited"}}, Reject("icmpx admin-prohibited")),
        ({"return": None}, Verdict("return")),
        ({"goto": {"target": "x"}}, Verdict("goto", "x")),
    ],
)  # fmt: skip
def test_every_spelling_of_a_statement_is_known(expr: dict[str, Any], statement: object) -> None:
    assert rule(expr) == (statement,)


@pytest.mark.parametrize("protocol", ["tcp", 6])
def test_the_match_that_a_reject_implies_is_folded(protocol: object) -> None:
    match = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": protocol}}
    assert rule(match, {"reject": {"type": "tcp reset"}}) == (Reject("tcp reset"),)
    assert isinstance(rule(match, {"drop": None})[0], Foreign), "nothing else implies it"


KEY = [
    {"payload": {"protocol": p, "field": f}}
    for p, f in (("ip", "saddr"), ("th", "sport"), ("ip", "daddr"), ("th", "dport"))
]


@pytest.mark.parametrize(
    ("limit", "known"),
    [
        ({"rate": 1, "burst": 1, "per": "minute"}, True),
        ({"rate": 1, "burst": 1, "per": "minute", "rate_unit": "packets"}, True),
        ({"rate": 1, "per": "minute"}, True),
        ({"rate": 1, "burst": 5, "per": "minute"}, False),
        ({"rate": 1, "burst": 1, "per": "minute", "inv": True}, False),
        ({"rate": 1, "burst": 1, "per": "minute", "rate_unit": "kbytes"}, False),
    ],
)
def test_a_flow_limit_is_known_only_as_it_is_written(limit: dict[str, Any], known: bool) -> None:
    expr = {"set": {"op": "update", "elem": {"concat": KEY}, "set": "@flows4", "stmt": [{"limit": limit}]}}
    (found,) = rule(expr)
    assert (found == Update(Key.FLOW4, "flows4", Limit(1, "minute"))) == known


CGROUP = [{"socket": {"key": "cgroupv2"}}, {"payload": {"protocol": "th", "field": "sport"}}]
BITS = {"payload": {"base": "th", "offset": 32, "len": 32}}


def test_an_attempt_is_noted_at_any_depth() -> None:
    """How deep below the root of the control groups a rule looks, nft does not list (1.0.6, 1.1.3)."""
    found = rule({"set": {"op": "update", "elem": {"concat": [*CGROUP, BITS]}, "set": "@attempts"}}, {"return": None})
    assert found == (Update(Key.ATTEMPT, "attempts", level=5), Verdict("return"))
    assert Update(Key.ATTEMPT, "attempts", level=5) == Update(Key.ATTEMPT, "attempts", level=2)


@pytest.mark.parametrize("kind", [["cgroupsv2", "inet_service", "integer"], {"typeof": {"concat": [*CGROUP, BITS]}}])
def test_both_spellings_of_a_set_of_attempts_are_known(kind: object) -> None:
    thing = {"set": {"name": "s", "type": kind, "size": 8192, "flags": ["timeout", "dynamic"], "timeout": 2}}
    assert parse(reply(thing)).sets["s"] == DynamicSet("s", Key.ATTEMPT, 8192, 2)


@pytest.mark.parametrize(
    "expr",
    [
        {"accept": {}}, {"xt": {"type": "target", "name": "LOG"}}, {"log": {"prefix": "x", "group": 25, "snaplen": 5}}, {"log": None},
        {"log": {"prefix": "x", "level": "emerg", "flags": "skuid"}}, {"reject": {"type": "tcp reset", "expr": "x"}},
        {"reject": None}, {"vmap": {"key": {"payload": {"protocol": "tcp", "field": "sport"}}, "data": "@x"}},
        {"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": []}}},
        {"counter": {"packets": 0, "bytes": 0}}, {"match": {"op": "in", "left": TCP_FLAGS, "right": "syn"}},
        {"match": {"op": "==", "left": {"&": [TCP_FLAGS, ["syn", "ack"]]}, "right": "syn"}}, {"jump": "x"}, {"quota": {}}, {},
    ],
)  # fmt: skip
def test_what_nftguard_would_not_write_is_foreign_and_so_drift(expr: dict[str, Any]) -> None:
    (found,) = rule(expr)
    assert isinstance(found, Foreign)


@pytest.mark.parametrize(
    ("key", "ports"),
    [
        (25, Ports(25, 25)),
        ({"range": [1024, 65535]}, Ports(1024, 65535)),
        ({"prefix": {"addr": 1024, "len": 6}}, Ports(1024, 2047)),
        ("*", Ports(0, 65535)),
    ],
)
def test_every_spelling_of_a_key_is_known(key: object, ports: Ports) -> None:
    thing = {"map": {"name": "m", "type": "inet_service", "map": "verdict", "elem": [[key, {"drop": None}]]}}
    assert [*parse(reply(thing)).maps["m"].elements] == [ports]


@pytest.mark.parametrize(
    "change",
    [
        {"type": "mark"}, {"type": ["inet_service", "mark"]}, {"map": "quota"}, {"flags": ["interval", "timeout"]}, {"flags": "constant"}, {"size": 5},
        {"timeout": 5}, {"elem": [[{"set": [1]}, {"drop": None}]]}, {"elem": [25]}, {"elem": [[25, {"queue": {"num": 1}}]]},
        {"elem": [[{"elem": {"val": 25, "timeout": 5}}, {"drop": None}]]},
    ],
)  # fmt: skip
def test_a_map_of_another_shape_is_marked(change: dict[str, Any]) -> None:
    thing = {"map": {"name": "m", "type": "inet_service", "map": "verdict"} | change}
    assert parse(reply(thing)).maps["m"].foreign


def test_objects_of_other_kinds_are_foreign() -> None:
    found = parse(reply({"flowtable": {"name": "ft"}}, {"quota": {"name": "q"}}, {"ct helper": {"name": "h"}}))
    assert found == Table(foreign=frozenset({"flowtable ft", "quota q", "ct helper h"}))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", "{}", '{"nftables": null}', '{"nftables": []}', '{"nftables": [1]}', '{"nftables": [{}]}',
        '{"nftables": [{"table": {}, "chain": {}}]}', '{"nftables": [{"table": {"flags": \n}}]}', '{"nftables": [{"rule": {"chain": "c"}}]}',
        '{"nftables": [{"table": {}}, {"chain": {}}]}', '{"nftables": [{"table": {}}, {"counter": {"name": "c", "packets": "x"}}]}',
        '{"nftables": [{"table": {}}, {"set": {"name": "s"}}]}', '{"nftables": [{"table": {}}, {"map": {"name": "m"}}]}',
        '{"nftables": [{"table": {}}, {"rule": {"chain": "none", "expr": []}}]}', '{"nftables": [{"table": {}}, {"chain": {"name": "c", "hook": "x"}}]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_reply_is_told_as_such(text: str) -> None:
    with pytest.raises(MalformedError):
        parse(text)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["nftables", "table", "chain", "rule", "map", "set", "counter", "name", "expr", "elem", "type", "flags", "match", "op", "left", "right", "&", "log", "prefix"]), inner, max_size=3),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_a_table_or_malformed(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"nftables": [TABLE, value]})):
        try:
            found = parse(text)
        except MalformedError:
            continue
        assert isinstance(found, Table)


def test_counters_are_read_on_their_own() -> None:
    text = json.dumps({"nftables": [{"metainfo": {}}, {"counter": {"name": "c", "packets": 5, "bytes": 6}}]})
    assert [*nftjson.parse_counters(text)] == ["c"]
    for wrong in ("", "{}", '{"nftables": [{"counter": {}}]}'):
        with pytest.raises(MalformedError):
            nftjson.parse_counters(wrong)
