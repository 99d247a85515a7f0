"""Attempts folded: what is one attempt, when it is told, and that the sums are the counters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.attempts.ledger import (
    ACCOUNTS,
    CROWD,
    FLOWS,
    LONGEST,
    NOBODY,
    WINDOW,
    Client,
    Ledger,
    Moment,
    Summary,
    Total,
)
from nftguard.bucket import Bucket, Buckets
from nftguard.model import Hook, Protocol
from nftguard.who.culprit import Culprit
from nftguard.wire.nflog import Attempt

SYN = Attempt("mail", Hook.OUTPUT, Protocol.TCP, "10.0.0.1", 40000, "10.0.0.2", 25, 1000, 1000, 7, 60)
SSH = Culprit(uid=1000, unit="ssh.service", program="ssh", known_by="kernel")
WEB = Culprit(uid=33, unit="apache2.service")
AT = "mail.output.tcp.25"


def moment(seconds: float) -> Moment:
    return Moment(seconds, 1_000_000 + seconds)


def send(ledger: Ledger, attempt: Attempt, seconds: float, culprit: Culprit | None = SSH, counter: str = AT) -> bool:
    """Take in one packet; tell whether it had a record."""
    now = moment(seconds)
    return not ledger.repeat(attempt, now) and ledger.open(attempt, counter, culprit, now).record


def test_the_packets_of_one_connect_are_one_attempt() -> None:
    """As they were measured: seven packets by 8 s, eleven by 70 s, the last after 130 s."""
    ledger = Ledger({})
    times = [0, 1, 2, 3, 4, 6, 8, 16, 32, 48, 66, 130]
    assert [send(ledger, SYN, at) for at in times] == [True] + [False] * 11
    assert ledger.settle({AT: Total(12, 720)}, moment(130 + WINDOW - 1)) == []
    (found,) = ledger.settle({AT: Total(12, 720)}, moment(130 + WINDOW))
    assert found == Summary(AT, SSH, 12, 720, 1, 1, first=1_000_000, last=1_000_130, account=1, destination="10.0.0.2")
    assert ledger.due() is None


@pytest.mark.parametrize(
    "other",
    [
        replace(SYN, source_port=40001), replace(SYN, sequence=8), replace(SYN, destination="10.0.0.3"),
        replace(SYN, port=26), replace(SYN, block="more"), replace(SYN, hook=Hook.FORWARD),
        replace(SYN, source="10.0.0.9"),
    ],
)  # fmt: skip
def test_another_connection_is_another_attempt(other: Attempt) -> None:
    ledger = Ledger({})
    assert send(ledger, SYN, 0)
    assert send(ledger, other, 0.1)


def test_datagrams_of_one_flow_are_one_attempt_whatever_they_hold() -> None:
    ledger = Ledger({})
    datagram = replace(SYN, protocol=Protocol.UDP)
    assert [send(ledger, replace(datagram, sequence=number), number) for number in range(3)] == [True, False, False]


def test_a_flow_that_comes_back_after_its_window_is_a_new_attempt() -> None:
    ledger = Ledger({})
    assert send(ledger, SYN, 0)
    assert send(ledger, SYN, WINDOW + 1)


def test_what_does_not_end_is_summed_up_now_and_then() -> None:
    ledger = Ledger({})
    seconds = 0.0
    while seconds < LONGEST:
        send(ledger, SYN, seconds)
        seconds += 100
    packets = int(seconds // 100)
    (found,) = ledger.settle({AT: Total(packets, 60 * packets)}, moment(LONGEST))
    assert (found.packets, found.attempts) == (packets, 1)
    send(ledger, SYN, LONGEST + 1)
    (found,) = ledger.settle({AT: Total(packets + 1, 60 * packets + 60)}, moment(LONGEST + 1), every=True)
    assert (found.packets, found.attempts, found.culprit) == (1, 0, SSH), "the rest of an attempt that was told"


def test_a_summary_names_the_last_client_that_was_clear_and_the_one_destination() -> None:
    ledger = Ledger({})
    ledger.open(SYN, AT, SSH, moment(0), Client("198.51.100.4", 0.9))
    ledger.open(replace(SYN, sequence=8), AT, SSH, moment(1))
    (found,) = ledger.settle({}, moment(1), every=True)
    assert (found.client, found.destination) == (Client("198.51.100.4", 0.9), "10.0.0.2")
    for number, host in enumerate(["10.0.0.2", "10.0.0.3", "10.0.0.2"]):
        ledger.open(replace(SYN, sequence=10 + number, destination=host), AT, SSH, moment(2))
    (found,) = ledger.settle({}, moment(2), every=True)
    assert (found.client, found.destination) == (NOBODY, "")


def test_what_nobody_saw_is_nobodys_and_names_who_was_seen_meanwhile() -> None:
    ledger = Ledger({})
    send(ledger, SYN, 0)
    send(ledger, replace(SYN, source_port=1), 100, WEB)
    first = ledger.settle({AT: Total(50, 3000)}, moment(WINDOW))
    assert [(found.culprit, found.packets) for found in first] == [(SSH, 1), (None, 48)]
    assert first[1].among == ("ssh (ssh.service, uid 1000)", "apache2.service (uid 33)")
    assert [found.packets for found in ledger.settle({AT: Total(50, 3000)}, moment(300))] == [1]


def test_a_counter_that_was_set_back_is_followed_from_there() -> None:
    ledger = Ledger({AT: Total(100, 6000)})
    assert ledger.settle({AT: Total(10, 600)}, moment(0)) == []
    (found,) = ledger.settle({AT: Total(12, 720)}, moment(1))
    assert found.packets == 2


def test_a_counter_that_is_no_more_is_summed_up_to_its_end_and_begins_anew() -> None:
    ledger = Ledger({AT: Total(100, 6000)})
    send(ledger, SYN, 0)
    found = ledger.finish({AT: Total(150, 9000)}, moment(1))
    assert [(one.culprit, one.packets) for one in found] == [(SSH, 1), (None, 49)]
    (found_later,) = ledger.settle({AT: Total(7, 420)}, moment(2))
    assert found_later.packets == 7


def test_what_a_counter_lost_is_not_told_of_it_again_nor_missing_from_what_comes() -> None:
    """Somebody deleted the table, and the daemon made it anew with what it had last seen of the counter."""
    ledger = Ledger({AT: Total(100, 6000)})
    send(ledger, SYN, 0)
    ledger.rebase({AT: Total(60, 3600)})
    found = ledger.settle({AT: Total(75, 4500)}, moment(1), every=True)
    assert [(one.culprit, one.packets) for one in found] == [(SSH, 1), (None, 15)]
    ledger.rebase({AT: Total(75, 4500)})
    assert ledger.settle({AT: Total(75, 4500)}, moment(2)) == []


def test_no_more_summaries_are_drawn_at_once_than_there_is_room_for() -> None:
    ledger = Ledger({})
    for number in range(10):
        send(ledger, replace(SYN, sequence=number), 0, Culprit(uid=number))
    total = {AT: Total(12, 720)}
    assert [one.packets for one in ledger.settle(total, moment(500), most=4)] == [1] * 4
    assert ledger.due() == pytest.approx(500, abs=1)
    assert [one.packets for one in ledger.settle(total, moment(501), most=4)] == [1] * 4
    assert [one.packets for one in ledger.settle(total, moment(502), most=4)] == [1, 1, 2]
    assert ledger.due() is None


def test_one_user_with_many_names_leaves_room_for_the_others() -> None:
    ledger = Ledger({})
    for number in range(2 * CROWD):
        send(ledger, replace(SYN, sequence=number), 0, Culprit(uid=1001, user="eve", user_unit=f"a{number}.service"))
    send(ledger, replace(SYN, sequence=5000), 0, WEB)
    found = ledger.settle({}, moment(0), every=True)
    assert len(found) == CROWD + 2
    assert sum(one.attempts for one in found if one.culprit == Culprit(uid=1001, user="eve")) == CROWD
    assert [one.attempts for one in found if one.culprit == WEB] == [1]


def test_made_up_sources_leave_records_for_the_hosts_own() -> None:
    ledger = Ledger({})
    for number in range(3000):
        source = f"10.9.{number >> 8}.{number & 255}"
        send(ledger, replace(SYN, hook=Hook.INPUT, source=source), 0, Culprit(source=source, interface="eth0"))
    assert send(ledger, SYN, 0)


def test_an_earlier_process_has_told_its_part() -> None:
    ledger = Ledger({AT: Total(100, 6000)})
    (found,) = ledger.settle({AT: Total(103, 6180)}, moment(5))
    assert (found.packets, found.bytes, found.culprit) == (3, 180, None)


def test_records_are_limited_for_each_culprit_so_that_the_next_one_still_has_his() -> None:
    ledger = Ledger({})
    told = sum(send(ledger, replace(SYN, sequence=number), 0) for number in range(500))
    assert told == 100
    assert send(ledger, replace(SYN, sequence=1000), 0, WEB)
    found = ledger.settle({}, moment(0), every=True)
    assert [(one.attempts, one.recorded) for one in found] == [(500, 100), (1, 1)]


def test_memory_is_bounded_and_the_sums_are_right_all_the_same() -> None:
    ledger = Ledger({})
    count = FLOWS + ACCOUNTS + 10
    for number in range(count):
        send(ledger, replace(SYN, sequence=number), 0, Culprit(uid=number))
    found = ledger.settle({AT: Total(count, 60 * count)}, moment(0), every=True)
    assert len(found) == ACCOUNTS + 1
    assert sum(one.packets for one in found) == count
    assert len(ledger._flows) == FLOWS


PACKETS = st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans(), st.floats(0, 200))


@given(st.lists(PACKETS, max_size=60), st.integers(0, 1000))
def test_whatever_happens_the_sums_are_the_counters(packets: list[tuple[int, int, bool, float]], before: int) -> None:
    """Seen or not, of whatever flow and culprit, settled whenever it is due."""
    counters = ["mail.output.tcp.25", "mail.output.tcp.465", "mail.output.tcp.587"]
    counted = {name: Total(before, before * 60) for name in counters}
    ledger = Ledger(counted)
    summed = dict.fromkeys(counters, 0)

    def settle(at: float, *, every: bool = False) -> None:
        for found in ledger.settle(counted, moment(at), every=every):
            summed[found.counter] += found.packets
            assert found.packets > 0
            assert found.recorded <= found.attempts

    seconds = 0.0
    for flow, which, seen, pause in packets:
        seconds += pause
        counter = counters[which]
        counted[counter] = Total(counted[counter].packets + 1, counted[counter].bytes + 60)
        if seen:
            send(ledger, replace(SYN, sequence=flow, port=which), seconds, [None, SSH, WEB][flow % 3], counter)
        if (due := ledger.due()) is not None and due <= seconds:
            settle(seconds)
    settle(seconds, every=True)
    assert summed == {name: total.packets - before for name, total in counted.items()}


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(rate=2, burst=3)
    assert [bucket.take(10) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5), bucket.take(10.5)] == [True, False]
    assert not bucket.take(10.4), "a clock that goes back gives nothing"


def test_one_who_takes_many_leaves_some_for_the_others() -> None:
    buckets = Buckets(total=(0, 5), each=(0, 3), most=2)
    assert [buckets.take("a", 0) for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("b", 0) for _ in range(3)] == [True, True, False]
