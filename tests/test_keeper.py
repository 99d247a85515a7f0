"""The one path, with a kernel in memory that can refuse, and what systemd is told in the order in which it is."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nftguard import journal, lastgood, notify
from nftguard.allowed.grant import Grant, Who
from nftguard.errors import ConfigError, KernelError
from nftguard.keeper import Keeper
from nftguard.model import PLAIN, Counter, Hook, Protocol, Set
from nftguard.pace import Cause
from nftguard.plan import AddMembers
from nftguard.resolver.known import Names
from nftguard.status import State
from nftguard.surroundings import Surroundings
from nftguard.wire.watch import Change
from tests.fake_kernel import FakeKernel

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.plan import Plan


class Told(FakeKernel):
    """A kernel that notes its transactions in the same list as what systemd is told."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told

    def apply(self, plan: Plan) -> None:
        super().apply(plan)
        self.told.append("rules")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(notify, "ready", lambda _: found.append("READY"))
    monkeypatch.setattr(notify, "reloading", lambda _: found.append("RELOADING"))
    monkeypatch.setattr(notify, "status", lambda _: None)
    return found


@pytest.fixture
def kernel(told: list[str]) -> Told:
    return Told(told)


@pytest.fixture
def console() -> io.StringIO:
    """What is logged."""
    return io.StringIO()


@pytest.fixture
def guard(kernel: Told, config_file: Path, folders: Path, console: io.StringIO) -> Keeper:
    assert folders.exists()
    journal.configure(console)
    return Keeper(config_file, kernel, Surroundings())


def run(guard: Keeper, *causes: Cause) -> Exception | None:
    for cause in causes:
        guard.pace.wake(cause)
    return guard.run()


def state(guard: Keeper) -> State:
    return guard.bulletin.standing.state


def test_ready_comes_after_the_rules(guard: Keeper, told: list[str]) -> None:
    assert run(guard, Cause.START) is None
    assert told == ["rules", "READY"]


def test_no_ready_when_the_kernel_refuses(guard: Keeper, kernel: Told, told: list[str]) -> None:
    kernel.refusing = "out of memory"
    with pytest.raises(KernelError, match="out of memory"):
        run(guard, Cause.START)
    assert told == []


def test_no_ready_when_the_first_configuration_is_refused(guard: Keeper, told: list[str], config_file: Path) -> None:
    config_file.write_text("[")
    with pytest.raises(ConfigError):
        run(guard, Cause.START)
    assert told == []


def test_a_reload_is_bracketed(guard: Keeper, told: list[str], config_file: Path) -> None:
    run(guard, Cause.START)
    config_file.write_text(config_file.read_text().replace("995", "996"))
    told.clear()
    assert run(guard, Cause.RELOAD) is None
    assert told == ["RELOADING", "rules", "READY"]


def test_a_network_change_is_bracketed_when_it_makes_work_and_else_not(
    guard: Keeper, kernel: Told, told: list[str]
) -> None:
    run(guard, Cause.START)
    told.clear()
    run(guard, Cause.NETWORK)
    assert told == []
    kernel.table = None
    run(guard, Cause.NETWORK)
    assert told == ["RELOADING", "rules", "READY"]


@pytest.mark.parametrize("refusal", ["file", "kernel"])
def test_a_refused_reload_still_mends_what_is_broken_meanwhile(
    guard: Keeper, kernel: Told, config_file: Path, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush and the reload meet in one pass."""
    run(guard, Cause.START)
    before, kernel.table = kernel.table, None
    if refusal == "file":
        config_file.write_text("[")
    else:
        config_file.write_text(config_file.read_text().replace("995", "996"))
        apply, refused = kernel.apply, []

        def refuse_the_new(plan: Plan) -> None:
            if "996" in str(plan):
                refused.append(plan)
                raise KernelError("apply", "no")
            apply(plan)

        monkeypatch.setattr(kernel, "apply", refuse_the_new)
    guard.changed([Change(0.0, 1, "nft")])
    assert run(guard, Cause.RELOAD) is not None
    assert kernel.table == before
    assert state(guard) is State.DEGRADED
    assert "DEGRADED: the new configuration is refused" in guard.bulletin.sentence()
    assert guard.bulletin.tally.repairs == {"ruleset": 1}, "not that the reload had anything to repair"


def test_a_start_with_a_broken_file_puts_the_last_good_policy_in_force(
    guard: Keeper, kernel: Told, told: list[str], config_file: Path
) -> None:
    run(guard, Cause.START)
    table, kernel.table = kernel.table, None
    config_file.write_text("[")
    told.clear()
    second = Keeper(config_file, kernel, Surroundings())
    assert isinstance(run(second, Cause.START), ConfigError)
    assert told == ["rules", "READY"]
    assert kernel.table == table
    assert second.bulletin.standing.state is State.DEGRADED
    assert second.bulletin.resync == second.pace.resync == 300, "its word counts as long as ever"


def test_a_policy_is_the_last_good_one_only_once_the_kernel_took_it(
    guard: Keeper, kernel: Told, config_file: Path
) -> None:
    run(guard, Cause.START)
    config_file.write_text(config_file.read_text().replace("995", "996"))
    kernel.refusing = "no"
    run(guard, Cause.RELOAD)
    kept = lastgood.load()
    assert kept
    assert "mail.output.tcp.995" in kept.table(PLAIN).counters


def test_a_failure_is_told_with_what_is_in_force_and_tried_again(
    guard: Keeper, kernel: Told, console: io.StringIO
) -> None:
    run(guard, Cause.START)
    kernel.table, kernel.refusing = None, "out of memory"
    assert isinstance(run(guard, Cause.RULESET), KernelError)
    assert state(guard) is State.UNPROTECTED
    assert guard.bulletin.sentence().startswith("UNPROTECTED: the kernel refused to apply: out of memory")
    assert 0 < guard.pace.wait() <= 1
    kernel.refusing = ""
    assert run(guard, Cause.RETRY) is None
    assert state(guard) is State.PROTECTED
    assert console.getvalue().count("out of memory; trying again in 1 s") == 1


def test_totals_survive_a_flush_and_the_process(guard: Keeper, kernel: Told, config_file: Path) -> None:
    run(guard, Cause.START)
    assert kernel.table
    name = "mail.output.tcp.25"
    counters = {**kernel.table.counters, name: Counter(name, 7, 420)}
    kernel.table = replace(kernel.table, counters=counters)
    run(guard, Cause.TIMER)
    kernel.table = None
    run(guard, Cause.RULESET)
    assert kernel.table
    assert kernel.table.counters[name] == Counter(name, 7, 420)
    kernel.table = None
    run(Keeper(config_file, kernel, Surroundings()), Cause.START)
    assert kernel.table
    assert kernel.table.counters[name] == Counter(name, 7, 420)


def test_while_a_repair_is_put_off_nobody_is_told_protected(guard: Keeper, kernel: Told) -> None:
    run(guard, Cause.START)
    for _ in range(30):
        kernel.table = None
        guard.changed([Change(0.0, 5, "foe")])
        if guard.pace.wait() > 0:
            break
        run(guard)
    assert guard.pace.wait() > 0
    assert state(guard) is State.UNPROTECTED
    assert guard.bulletin.standing.reasons == ("foe keeps changing the rules",)
    run(guard)
    assert state(guard) is State.PROTECTED


def test_suspended_it_does_nothing_until_asked(guard: Keeper, kernel: Told, config_file: Path) -> None:
    run(guard, Cause.START)
    guard.lift("test")
    guard.bulletin.suspended = "until told"
    run(guard, Cause.RULESET, Cause.TIMER, Cause.NETWORK)
    config_file.write_text("[" + config_file.read_text())
    run(guard, Cause.RELOAD)
    assert kernel.table is None, "a refused reload does not end it"
    config_file.write_text(config_file.read_text()[1:])
    run(guard, Cause.RELOAD)
    assert kernel.table
    assert state(guard) is State.PROTECTED


def test_own_transactions_are_not_blamed(guard: Keeper, kernel: Told, console: io.StringIO) -> None:
    run(guard, Cause.START)
    kernel.table = None
    guard.changed([Change(0.0, os.getpid(), "python"), Change(0.0, 99, "nftguard"), Change(0.0, 77, "culprit")])
    run(guard)
    assert "changed by culprit (process 77)" in console.getvalue()


def test_who_was_too_late_for_the_events_of_a_pass_is_blamed_all_the_same(
    kernel: Told, config_file: Path, folders: Path, console: io.StringIO
) -> None:
    assert folders.exists()
    journal.configure(console)
    said: list[Change] = []

    def listen() -> None:
        keeper.changed(said)
        said.clear()

    keeper = Keeper(config_file, kernel, Surroundings(), listen)
    run(keeper, Cause.START)
    own = Change(1.0, os.getpid(), "nftguard")
    for first, second in (("foe", "friend"), ("friend", "nobody")):
        keeper.changed([own])
        kernel.table = None
        said[:] = [own, Change(1.0, 5, first), own, Change(1.0, 6, second)]
        keeper.run()
        assert f"changed by {first} (process 5)" in console.getvalue()
        assert f"changed by {second} (process 6)" not in console.getvalue()
        kernel.table = None
        keeper.run()
        assert f"changed by {second} (process 6)" in console.getvalue()


def test_nobody_is_blamed_where_events_were_lost(guard: Keeper, kernel: Told, console: io.StringIO) -> None:
    run(guard, Cause.START)
    kernel.table = None
    guard.changed([Change(0.0)])
    run(guard)
    assert "rules repaired: the table is missing; on a ruleset change" in console.getvalue()


class Picky(FakeKernel):
    """A kernel that takes no element of a set while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.picky = True

    def apply(self, plan: Plan) -> None:
        if self.picky and any(isinstance(step, AddMembers) for step in plan.steps):
            raise KernelError("apply", "Value too large for defined data type")
        super().apply(plan)


def test_an_exception_that_the_kernel_refuses_costs_the_exceptions_and_not_the_block(
    told: list[str], config_file: Path, folders: Path, console: io.StringIO
) -> None:
    journal.configure(console)
    passwd = folders / "passwd"
    passwd.write_text("bob:x:1000:1000::/:\n")
    config_file.write_text('[[block]]\nname = "mail"\nports = [25]\nallow = { users = ["bob"] }\n')
    kernel = Picky()
    keeper = Keeper(config_file, kernel, Surroundings(etc=folders))
    keeper.pace.wake(Cause.START)
    assert keeper.run() is None
    assert kernel.table
    assert "mail.output.tcp.25" in kernel.table.counters
    found = kernel.table.sets["mail.users"]
    assert isinstance(found, Set)
    assert found.elements == frozenset()
    assert state(keeper) is State.DEGRADED
    assert "nothing is let through by name, nor for a while: the kernel refused" in console.getvalue()
    assert keeper.pace.wait() <= 1, "it is tried again soon"
    kernel.picky = False
    keeper.pace.wake(Cause.TIMER)
    keeper.run()
    found = kernel.table.sets["mail.users"]
    assert isinstance(found, Set)
    assert found.elements == {"1000"}
    assert state(keeper) is State.PROTECTED
    assert "READY" in told


def test_a_host_that_is_allowed_for_a_while_stays_wanted_when_the_policy_is_kept(
    told: list[str], config_file: Path, folders: Path, console: io.StringIO
) -> None:
    """What is kept for the next boot does without it; the resolver must not be told so."""
    journal.configure(console)
    names = Names()
    keeper = Keeper(config_file, FakeKernel(), Surroundings(names=names))
    keeper.book.grant(Grant(Hook.OUTPUT, Protocol.TCP, (25,), Who.TO, "relay.example", 60))
    keeper.pace.wake(Cause.START)
    assert keeper.run() is None
    keeper.keep()
    assert "relay.example" in (folders / "run/names").read_text()
    names.close()
    assert told
