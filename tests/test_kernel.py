"""The contract of a kernel, for the real one and the fake; and what only the real one shows."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from nftguard import policy
from nftguard.errors import KernelError, NftguardError, NotPermittedError
from nftguard.host import Host
from nftguard.kernel import Kernel, Nftables
from nftguard.model import Chain, Counter, Table, Verdict
from nftguard.plan import (
    Add,
    AddElements,
    AddMembers,
    AddRule,
    AddTable,
    Delete,
    DeleteElements,
    Flush,
    Plan,
    diff,
    rebuild,
    remove,
)
from nftguard.ports import Ports
from nftguard.reconcile import reconcile
from nftguard.wire import netlink
from nftguard.wire.watch import RulesetWatch
from tests.examples import HOST, allowances, config_of, configs, table_of
from tests.fake_kernel import FakeKernel
from tests.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.allow import Allowance
    from nftguard.config import Config

MAIL = '[[block]]\nname = "mail"\nports = [25, 465, "1000-2000"]\n'
REJECT = MAIL + 'action = "reject"\nconnections = "new"\n'
TWO = MAIL + '[[block]]\nname = "more"\nports = ["20-30", "1500-2500"]\nhooks = ["output", "forward"]\n'


@pytest.fixture(params=["fake", "real"])
def either(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "fake":
        return FakeKernel()
    real: Nftables = request.getfixturevalue("kernel")
    return real


def test_there_is_no_table_at_first(either: Kernel) -> None:
    assert either.snapshot() is None


@pytest.mark.parametrize("text", [MAIL, REJECT, TWO])
def test_what_was_applied_is_read_back(either: Kernel, text: str) -> None:
    desired = table_of(text)
    either.apply(diff(None, desired))
    assert either.snapshot() == desired


def test_an_empty_plan_changes_nothing(either: Kernel) -> None:
    either.apply(Plan())
    assert either.snapshot() is None


def test_a_removed_table_is_gone(either: Kernel) -> None:
    either.apply(diff(None, table_of(MAIL)))
    live = either.snapshot()
    assert live
    either.apply(remove(live))
    assert either.snapshot() is None


def test_a_check_changes_nothing(either: Kernel) -> None:
    either.check(table_of(MAIL))
    assert either.snapshot() is None


def test_a_check_refuses_what_could_not_be_applied(either: Kernel) -> None:
    desired = table_of(MAIL)
    either.apply(diff(None, desired))
    with pytest.raises(KernelError):
        either.check(replace(desired, chains={**desired.chains, "x": Chain("x", ((Verdict("jump", "nowhere"),),))}))
    assert either.snapshot() == desired


@pytest.mark.parametrize(
    "plan",
    [
        Plan((AddTable(),)),
        Plan((AddRule("nowhere", (Verdict("drop"),)),)),
        Plan((Add(Chain("new")), AddRule("new", (Verdict("jump", "nowhere"),)))),
        Plan((Add(Counter("new")), Delete("counter", "mail.output.tcp.25"))),
        Plan((Add(Counter("new")), Delete("chain", "mail.output.tcp"))),
        Plan((Add(Counter("new")), AddElements("output.tcp", {Ports(26, 26): Verdict("goto", "nowhere")}))),
        Plan((Add(Counter("new")), AddElements("output.tcp", {Ports(25, 25): Verdict("drop")}))),
    ],
)
def test_a_refused_plan_changes_nothing_at_all(either: Kernel, plan: Plan) -> None:
    desired = table_of(MAIL)
    either.apply(diff(None, desired))
    with pytest.raises(KernelError):
        either.apply(plan)
    assert either.snapshot() == desired


def test_a_plan_without_a_table_is_refused(either: Kernel) -> None:
    for plan in (remove(Table()), Plan((Add(Chain("new")),))):
        with pytest.raises(KernelError):
            either.apply(plan)
    assert either.snapshot() is None


@pytest.mark.parametrize(("before", "after"), [(MAIL, TWO), (TWO, MAIL), (MAIL, REJECT), (REJECT, TWO), (TWO, REJECT)])
def test_one_configuration_becomes_another_in_one_transaction(either: Kernel, before: str, after: str) -> None:
    either.apply(diff(None, table_of(before)))
    either.apply(diff(either.snapshot(), table_of(after)))
    assert either.snapshot() == table_of(after)


def test_a_counter_begins_with_the_values_that_it_is_given(either: Kernel) -> None:
    desired = table_of(MAIL)
    counters = {**desired.counters, "mail.output.tcp.25": Counter("mail.output.tcp.25", 7, 420)}
    either.apply(diff(None, replace(desired, counters=counters)))
    live = either.snapshot()
    assert live is not None
    assert live.counters == counters


def test_a_rebuild_carries_the_counters_over(either: Kernel) -> None:
    counters = {"mail.output.tcp.25": Counter("mail.output.tcp.25", 7, 420)}
    old = replace(table_of(MAIL), counters={**table_of(MAIL).counters, **counters})
    either.apply(diff(None, old))
    either.apply(rebuild(old, table_of(TWO)))
    live = either.snapshot()
    assert live is not None
    assert live.counters["mail.output.tcp.25"] == Counter("mail.output.tcp.25", 7, 420)
    assert not diff(live, table_of(TWO))


@pytest.fixture(scope="module")
def lasting(_kernel_there: None) -> Iterator[Nftables]:
    namespace = Namespace()
    with ExitStack() as stack:
        stack.callback(namespace.close)
        stack.enter_context(namespace.entered())
        kernel = Nftables()
        stack.callback(kernel.close)
        yield kernel


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=configs(exceptions=True), second=configs(exceptions=True), granted=allowances)
def test_any_configuration_makes_the_round_trip(
    lasting: Nftables, first: Config, second: Config, granted: tuple[Allowance, ...]
) -> None:
    """Apply, snapshot: nothing is left to do. And from any configuration to any other, by the smallest plan."""
    built = (policy.build(first), policy.build(second, host=HOST, allowances=granted), policy.build(second, host=HOST))
    for wanted in built:
        plan = diff(lasting.snapshot(), wanted)
        lasting.apply(plan)
        live = lasting.snapshot()
        assert live is not None
        assert diff(live, wanted).found == ()


DRIFTS = {
    "the whole ruleset flushed": "flush ruleset",
    "the table deleted": "delete table inet nftguard",
    "an element deleted": "delete element inet nftguard output.tcp { 25 }",
    "an element that lets a port through": "add element inet nftguard output.tcp { 80 : accept }",
    "an element led elsewhere": (
        "delete element inet nftguard output.tcp { 25 }; add element inet nftguard output.tcp { 25 : accept }"
    ),
    "a range deleted": "delete element inet nftguard output.tcp.ranges { 1000-2000 }",
    "a range narrowed": "flush map inet nftguard output.tcp.ranges; "
    "add element inet nftguard output.tcp.ranges { 1000-1999 : goto mail.output.tcp }",
    "a chain flushed": "flush chain inet nftguard mail.output.tcp",
    "a rule added at the end": "add rule inet nftguard output accept",
    "a rule added in front": "insert rule inet nftguard mail.output.tcp accept",
    "a comment added": 'add rule inet nftguard output tcp dport 80 counter comment "mine"',
    "the policy changed": "add chain inet nftguard output { type filter hook output priority 0; policy drop; }",
    "the priority changed": "flush chain inet nftguard output; delete chain inet nftguard output; "
    "add chain inet nftguard output { type filter hook output priority 10; policy accept; }; "
    "add rule inet nftguard output tcp dport vmap @output.tcp; "
    "add rule inet nftguard output tcp dport vmap @output.tcp.ranges",
    "the table set dormant": "add table inet nftguard { flags dormant; }",
    "a chain added": "add chain inet nftguard mine; add rule inet nftguard mine drop",
    "a base chain added": "add chain inet nftguard mine { type filter hook output priority -5; policy accept; }",
    "a chain of theirs that refers to ours": "add chain inet nftguard mine; "
    "add rule inet nftguard mine jump mail.output.tcp",
    "a set added": "add set inet nftguard mine { type ipv4_addr; }",
    "a set of an unknown shape added": "add set inet nftguard mine { typeof ip saddr . meta mark; flags interval; }",
    "a map added": "add map inet nftguard mine { type ipv4_addr : mark; }",
    "a counter added": "add counter inet nftguard mine",
    "a quota added": "add quota inet nftguard mine { over 10 mbytes }",
    "a dynamic set made anew": "flush chain inet nftguard mail.output.tcp; "
    "flush chain inet nftguard mail.output.tcp.attempt; delete set inet nftguard users; "
    "add set inet nftguard users { type uid; size 10; flags dynamic, timeout; }",
    "a limit of theirs in the place of ours": "flush chain inet nftguard mail.output.tcp.attempt; "
    "add rule inet nftguard mail.output.tcp.attempt update @users { meta skuid limit rate over 1/day } return",
}


@pytest.mark.parametrize("script", DRIFTS.values(), ids=DRIFTS.keys())
def test_drift_is_seen_and_mended(netns: Namespace, kernel: Nftables, script: str) -> None:
    desired = table_of(MAIL)
    reconcile(kernel, desired)
    netns.nft(script.replace("; ", "\n"))
    outcome = reconcile(kernel, desired)
    assert outcome.plan.found
    assert not reconcile(kernel, desired).plan, "the second pass has nothing to do"


def test_a_rule_edited_with_its_comment_kept_is_drift(netns: Namespace, kernel: Nftables) -> None:
    """A comment is no identity: whoever edits a rule keeps it. So rules are compared by what they do."""
    desired = table_of(MAIL)
    reconcile(kernel, desired)
    listing = netns.run("nft", "-a", "list", "chain", "inet", "nftguard", "mail.output.tcp").stdout
    handle = next(line.split("# handle ")[1] for line in listing.splitlines() if line.strip().startswith("drop"))
    netns.nft(f'replace rule inet nftguard mail.output.tcp handle {handle} accept comment "drop"')
    assert reconcile(kernel, desired).plan.found == ("chain mail.output.tcp has other rules",)
    assert not reconcile(kernel, desired).plan


def test_elements_of_dynamic_sets_are_not_drift(netns: Namespace, kernel: Nftables) -> None:
    reconcile(kernel, table_of(MAIL))
    netns.nft("add element inet nftguard users { 1000 limit rate over 500/second burst 1000 packets }")
    assert not reconcile(kernel, table_of(MAIL)).plan


EXCEPTED = (
    MAIL
    + 'allow = { users = [104], to = ["10.0.0.0/8"], interfaces = ["wg*"] }\nhooks = ["output", "forward", "bridge"]\n'
)
LOOSENED = {
    "a user added": "add element inet nftguard mail.users { 33 }",
    "a user taken out": "delete element inet nftguard mail.users { 104 }",
    "a user added for a while": "add set inet nftguard mail.more { type uid; flags timeout; timeout 1h; }",
    "a network added": "add element inet nftguard mail.to4 { 192.0.2.0/24 }",
    "a network widened": "flush set inet nftguard mail.to4; add element inet nftguard mail.to4 { 0.0.0.0/1 }",
    "an interface added": 'add element inet nftguard mail.interfaces { "eth*" }',
    "an uplink added": 'add element inet nftguard uplinks { "docker0" }',
    "a bridge's uplink added": 'add element bridge nftguard bridge.uplinks { "vnet0" }',
    "the bridge's table deleted": "delete table bridge nftguard",
    "the other table deleted": "delete table inet nftguard",
    "the bridge's chain flushed": "flush chain bridge nftguard bridge.forward",
    "a rule of the bridge's added": "insert rule bridge nftguard bridge.forward accept",
    "an exception turned round": "insert rule inet nftguard mail.output.tcp meta skuid != @mail.users return",
    "an exception of all that has a user": "insert rule inet nftguard mail.output.tcp meta skuid >= 0 return",
}


@pytest.mark.parametrize("script", LOOSENED.values(), ids=LOOSENED)
def test_what_is_loosened_by_hand_is_found_and_mended(netns: Namespace, kernel: Nftables, script: str) -> None:
    desired = table_of(EXCEPTED)
    reconcile(kernel, desired)
    netns.nft(script)
    assert reconcile(kernel, desired).plan.found
    assert kernel.snapshot() == desired


def test_a_change_of_members_touches_no_rule_and_no_counter(kernel: Nftables) -> None:
    """Counters stand where they are, and the transaction names sets alone."""
    reconcile(kernel, table_of(EXCEPTED))
    wanted = table_of(EXCEPTED.replace("[104]", "[104, 8]").replace("10.0.0.0/8", "10.0.0.0/9").replace("wg*", "tun*"))
    plan = reconcile(kernel, wanted).plan
    assert {type(step) for step in plan.steps} <= {AddMembers, DeleteElements, Flush}
    assert {step.name for step in plan.steps if isinstance(step, Flush | AddMembers)} == {
        "mail.users", "mail.to4", "mail.interfaces", "mail.bridge.to4", "mail.bridge.interfaces"
    }  # fmt: skip
    assert kernel.snapshot() == wanted


def test_a_control_group_that_has_ended_keeps_nothing_from_being_applied(kernel: Nftables, base: Path) -> None:
    there = base / "postfix.service"
    there.mkdir()
    paths = {str(there.stat().st_ino): str(there.relative_to("/sys/fs/cgroup")), "1": "not/there.service"}
    host = Host(units={"postfix.service": paths})
    desired = policy.build(config_of(MAIL + 'allow = { units = ["postfix.service"] }'), host=host)
    outcome = reconcile(kernel, desired)
    assert outcome.plan.late
    live = kernel.snapshot()
    assert live
    assert diff(live, desired).found == ("set mail.units lacks 1",), "and only it is missed"
    host = Host(units={"postfix.service": {number: path for number, path in paths.items() if number != "1"}})
    desired = policy.build(config_of(MAIL + 'allow = { units = ["postfix.service"] }'), host=host)
    reconcile(kernel, desired)
    assert kernel.snapshot() == desired, "its element is the directory's inode number"
    there.rmdir()
    assert kernel.snapshot() == desired, "and stays that when the group has ended"


def test_tables_of_others_survive_everything(netns: Namespace, kernel: Nftables) -> None:
    """Whatever nftguard does, a hand-made table beside its own lists the same afterwards, counters included."""
    netns.nft(
        "table inet filter { chain output { type filter hook output priority 0; tcp dport 80 counter accept; }; }\n"
        "table ip nftguard { chain x { counter packets 1 bytes 2 drop; }; }\n"
        "table ip6 mine { set s { type ipv6_addr; elements = { fd00::1 }; }; }"
    )

    def others() -> str:
        names = (("inet", "filter"), ("ip", "nftguard"), ("ip6", "mine"))
        return "".join(netns.run("nft", "list", "table", *name).stdout for name in names)

    before = others()
    for text in (MAIL, TWO, REJECT):
        reconcile(kernel, table_of(text))
        netns.nft("add table inet nftguard { flags dormant; }")
        reconcile(kernel, table_of(text))
    live = kernel.snapshot()
    assert live
    kernel.apply(remove(live))
    assert others() == before


def test_counters_of_what_stays_keep_their_values(kernel: Nftables) -> None:
    """Also when a rule of the same port changes, and when a port is added or taken out."""
    old = table_of(MAIL)
    values = {name: Counter(name, 5, 300) for name in old.counters}
    kernel.apply(diff(None, replace(old, counters=values)))
    for text in (REJECT, TWO, MAIL, MAIL.replace("465", "587")):
        reconcile(kernel, table_of(text))
    live = kernel.snapshot()
    assert live is not None
    assert live.counters["mail.output.tcp.25"].packets == 5
    assert live.counters["mail.output.tcp.1000-2000"].packets == 5
    assert live.counters["mail.output.tcp.587"].packets == 0


def test_a_change_of_configuration_is_one_transaction(netns: Namespace, kernel: Nftables) -> None:
    with netns.entered():
        watch = RulesetWatch()
    for text in (MAIL, TWO, REJECT):
        reconcile(kernel, table_of(text))
        assert len(watch.read()) == 1
    watch.socket.close()


@pytest.mark.parametrize(
    "script",
    [
        'insert rule inet nftguard output oifname "\udce9" return',
        'add counter inet nftguard x { comment "\udce9"; }',
        'add chain inet nftguard mine\nadd rule inet nftguard mine oifname { "\udce9" } drop',
    ],
)
def test_bytes_that_are_no_text_do_not_end_the_process(netns: Namespace, kernel: Nftables, script: str) -> None:
    """Libnftables 1.0.6 aborts when its JSON meets them."""
    reconcile(kernel, table_of(MAIL))
    netns.run("nft", "-f", "-", input=script, errors="surrogateescape")
    assert reconcile(kernel, table_of(MAIL)).plan.found
    assert kernel.snapshot() == table_of(MAIL)


@pytest.mark.parametrize(
    ("code", "says"), [(errno.EOPNOTSUPP, "no nf_tables; load the module"), (errno.ENOMEM, "Cannot")]
)
def test_what_the_kernel_answers_is_told(
    kernel: Nftables, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    def refuse(_: netlink.Message) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(netlink, "raise_for_error", refuse)
    with pytest.raises(NftguardError, match=says):
        kernel.snapshot()


def test_one_more_port_is_a_small_plan(kernel: Nftables) -> None:
    reconcile(kernel, table_of(MAIL))
    plan = reconcile(kernel, table_of(MAIL.replace("465", "465, 587"))).plan
    assert len(plan.steps) == 3, "a counter, and an element in each of two maps"


def test_the_table_is_replaced_whole_where_no_small_change_is_taken(netns: Namespace, kernel: Nftables) -> None:
    """Somebody's rule refers to a chain of ours that the new configuration no longer has."""
    reconcile(kernel, table_of(TWO))
    netns.nft("insert rule inet nftguard mail.output.tcp jump more.output.tcp")
    assert reconcile(kernel, table_of(MAIL)).plan
    assert kernel.snapshot() == table_of(MAIL)


def test_a_flood_of_other_rules_is_not_read(netns: Namespace, kernel: Nftables) -> None:
    """Only our own table is listed: others' may be invalid JSON, or large."""
    elements = ", ".join(map(str, range(5000)))
    netns.nft(f"add table inet big\nadd set inet big s {{ type mark; }}\nadd element inet big s {{ {elements} }}")
    reconcile(kernel, table_of(MAIL))
    assert "big" not in repr(kernel.snapshot())


def test_without_privilege_the_error_says_so(netns: Namespace) -> None:
    code = (
        "import os; from nftguard.kernel import Nftables; from nftguard.errors import NftguardError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: Nftables().snapshot()\n"
        "except NftguardError as error: print(type(error).__name__, error.exit_code, error)"
    )
    out = netns.run(sys.executable, "-c", code).stdout
    assert out.startswith(f"{NotPermittedError.__name__} 77 ")
    assert out.endswith("cannot look for table inet nftguard: not permitted; needs root, or CAP_NET_ADMIN\n")


def test_an_empty_table_of_our_name_is_filled(netns: Namespace, kernel: Nftables) -> None:
    netns.nft("add table inet nftguard")
    assert kernel.snapshot() == Table()
    reconcile(kernel, table_of(MAIL))
    assert not reconcile(kernel, table_of(MAIL)).plan
