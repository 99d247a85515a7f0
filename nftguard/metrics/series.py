"""The daemon's last word as series for Prometheus: what they are called, and how many there are at most. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from nftguard.metrics.word import Problem
from nftguard.pace import Cause
from nftguard.ports import Ports, totals
from nftguard.status import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric

    from nftguard.metrics.word import Word

APART = 1000
"""Counters that have series of their own: the first ones, as `status` lists them.

Later ones of the same block, hook and protocol are added up with port="other": series must not grow with the policy."""
OTHER = "other"
LOST = ("ruleset", "network", "attempts", "records")
"""What may be lost, all of it there from the beginning: Prometheus sees no rise in what it did not know before."""

_PLACE = ("block", "hook", "protocol", "port")


def families(word: Word) -> list[Metric]:
    """Give all series; where the word does not count, only those that say so and why."""
    problem = word.problem
    found: list[Metric] = []
    if not problem:
        try:
            found = [*_standing(word.document), *_counted(word.document["ports"]), *_daemon(word.document)]
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            problem = Problem.UNREADABLE
    up = _gauge(
        "up", "Whether the guard's last word is there and counts; it does not tell whether anything is blocked."
    )
    up.add_metric([], not problem)
    why = _gauge("status_problem", "Why the guard's last word does not count.", "problem")
    for one in Problem:
        why.add_metric([one], one is problem)
    at = _gauge("status_timestamp_seconds", "When the guard's last word was written; 0 where there is none.")
    at.add_metric([], word.at)
    return [up, why, at, *found]


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"nftguard_{name}", about, labels=labels)


def _counter(name: str, about: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"nftguard_{name}", about, labels=labels)


def _one(name: str, about: str, value: float) -> GaugeMetricFamily:
    family = _gauge(name, about)
    family.add_metric([], float(value))
    return family


def _by(name: str, about: str, label: str, counts: Mapping[str, Any], known: Iterable[str]) -> CounterMetricFamily:
    family = _counter(name, about, label)
    for value in dict.fromkeys([*known, *counts]):
        family.add_metric([value], float(counts.get(value, 0)))
    return family


def _standing(document: Mapping[str, Any]) -> Iterable[Metric]:
    state = _gauge("state", "How well the host is protected: 1 for the state that it is in.", "state")
    for one in State:
        state.add_metric([one], document["state"] == one.value)
    yield state
    blocked = _gauge(
        "ports_blocked", "Ports that are blocked, each counted once, by hook and protocol.", "hook", "protocol"
    )
    rows = ((str(row["hook"]), str(row["protocol"]), str(row["port"])) for row in document["ports"])
    for place, count in totals(((hook, protocol), Ports.read(port)) for hook, protocol, port in rows).items():
        blocked.add_metric(place, count)
    yield blocked
    yield _one("warnings", "What the guard warns of, as `nftguard status` lists it.", len(document["warnings"]))
    yield _one("allowances", "What is allowed for a while, as `nftguard allow` lists it.", len(document["allowed"]))


def _counted(rows: list[Mapping[str, Any]]) -> Iterable[Metric]:
    packets: Counter[tuple[str, ...]] = Counter()
    size: Counter[tuple[str, ...]] = Counter()
    for number, row in enumerate(rows):
        port = str(row["port"]) if number < APART else OTHER
        place = *(str(row[label]) for label in _PLACE[:3]), port
        packets[place] += int(row["packets"])
        size[place] += int(row["bytes"])
    for name, about, counts in (
        ("blocked_packets", "Packets that were blocked, by the kernel's counters.", packets),
        ("blocked_bytes", "Bytes of the packets that were blocked, by the kernel's counters.", size),
    ):
        family = _counter(name, about, *_PLACE)
        for labels, count in counts.items():
            family.add_metric(labels, count)
        yield family


def _daemon(document: Mapping[str, Any]) -> Iterable[Metric]:
    daemon = document["daemon"]
    counts = daemon["counts"]
    attempts = _counter("attempts", "Blocked attempts, by the unit or container that made them.", "hook", "unit")
    for row in counts["attempts"]:
        attempts.add_metric([str(row["hook"]), str(row["unit"])], int(row["attempts"]))
    yield attempts
    causes = [cause.name.lower() for cause in Cause if cause not in {Cause.START, Cause.RESUME}]  # these repair nothing
    yield _by("repairs", "Repairs of what others changed, by what led to them.", "cause", counts["repairs"], causes)
    gaps = HistogramMetricFamily(
        "nftguard_repair_gap_seconds", "Time from a foreign change of the rules, when it was seen, to its repair."
    )
    buckets = [
        ("+Inf" if bound is None else str(float(bound)), float(count)) for bound, count in counts["gaps"]["buckets"]
    ]
    gaps.add_metric([], buckets, float(counts["gaps"]["sum"]))
    yield gaps
    yield _by("reloads", "Reloads of the configuration, by their outcome.", "result", counts["reloads"], ())
    yield _by(
        "reconciles", "Comparisons with the kernel's rules, by their outcome.", "result", counts["reconciles"], ()
    )
    if last := counts["last_reconcile"]:
        yield _one("last_reconcile_timestamp_seconds", "When the last one that was done ended.", last["at"])
        yield _one("last_reconcile_duration_seconds", "How long the last one that was done took.", last["seconds"])
    lost = counts["lost"] | {"attempts": daemon["attempts_lost"], "records": daemon["records_dropped"]}
    yield _by("events_lost", "Events that did not reach the guard, or the journal, by their kind.", "kind", lost, LOST)
    yield _one("suspended", "Whether the rules are lifted on an administrator's word.", bool(daemon["suspended"]))
    yield _one("table_owned", "Whether the kernel keeps others from changing the table.", bool(daemon["owner"]))
    yield _one("start_time_seconds", "When the guard was started.", daemon["since"])
    info = _gauge("build_info", "The versions of what runs: always 1.", "version", "nft", "python")
    info.add_metric([str(document["version"]), str(daemon["nft"]), str(daemon["python"])], 1)
    yield info
