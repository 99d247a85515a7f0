"""Rivals: nftguard beside other ways to block 11 ports on output, each on a booted Debian 13 of its own."""

from __future__ import annotations

import contextlib
import re
from statistics import median
from typing import TYPE_CHECKING

from bench.figure import Figure, Unit, progress
from bench.probe import answering, open_after, timed
from bench.rival import BASELINE, MAIL, PACKAGES, PEERS, PORTS, WAYS, Rival
from bench.traffic import ACK, SYN, Sender
from bench.turns import in_turns
from tests.boot import image
from tests.boot.suites import BOOKWORM, TRIXIE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.boot.suites import Suite

TRIALS = 5  # starts of each; systemd would refuse more within 10 s
ROUNDS = 500
_BOUND = 3.0  # seconds that are watched after a flush
_BATCH = 512
_OPEN, _NEW = range(20002, 36002, 1000), range(20004, 36004, 1000)  # ports that no way lists
_FLUSH = "nft flush ruleset"
# Not before it is gone: only then does the kernel take the table for nobody's.
_KILL = "pid=$(systemctl show --property=MainPID --value {unit}); kill -KILL $pid; while test -e /proc/$pid; do :; done"
# The link to the peer makes way for a sink with its addresses. conntrack takes the packets for those of connections
# that have had an answer; such are most of what a host sends, and pass firewalld and ufw without a look at their ports.
_SINK = """
systemctl --quiet stop systemd-networkd.socket systemd-networkd.service
ip address flush dev host0
sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1
for port in {ports}; do
    conntrack -I -p tcp -s 192.0.2.1 -d 192.0.2.2 --sport 40000 --dport $port --state ESTABLISHED \\
        -u SEEN_REPLY,ASSURED -t 4000 >/dev/null 2>&1
done
"""


def measure() -> list[Figure]:
    """Measure each way on a machine of its own, all of them up at once, in turns; against a hand-written nftables.conf.

    Attempts are real connections: those at a port of the peer where nobody listens get a reset at once. What is said of
    every way is measured in the same run; a fact that is no number (who tells which program tried?) is in the README.
    """
    with _booted(TRIXIE, WAYS) as rivals:
        bare = rivals.pop("none")
        figures = [*_starts(rivals)]
        for rival in rivals.values():
            rival.start()
        figures += [*_reach(rivals), *_memory(rivals, bare), *_flushes(rivals)]
        for rival in rivals.values():
            rival.start()
        figures += _packets(rivals | {"none": bare})
    with _booted(BOOKWORM, [BASELINE, *(name for name, way in WAYS.items() if way.daemon)]) as rivals:
        for rival in rivals.values():
            rival.start()
        figures += _flushes(rivals, "Debian 12, ")  # where no table can be owned
    return figures


@contextlib.contextmanager
def _booted(suite: Suite, names: Iterable[str]) -> Iterator[dict[str, Rival]]:
    booted = image.prepare(suite, PACKAGES, announce=progress)
    with contextlib.ExitStack() as stack:
        rivals = {}
        for name in names:
            progress(f"rivals: booting {suite} with {name}")
            rivals[name] = stack.enter_context(Rival(booted, WAYS[name]))
        yield rivals


def _against(what: str, unit: Unit, found: Mapping[str, float], trials: int = 1) -> Iterator[Figure]:
    """Give a figure of every way but the baseline, against that of the baseline."""
    for name, value in found.items():
        if name != BASELINE:
            yield Figure(f"{what}: {name}", value, unit, BASELINE, found[BASELINE], trials)


def _starts(rivals: Mapping[str, Rival]) -> Iterator[Figure]:
    """Start each from nothing, as a boot would."""
    blocked: dict[str, list[float]] = {name: [] for name in rivals}
    ended: dict[str, list[float]] = {name: [] for name in rivals}
    for trial in range(TRIALS):
        progress(f"rivals: start {trial + 1} of {TRIALS}")
        for name, rival in rivals.items():
            rival.stop()
            until_blocked, until_ended = timed(rival.machine, rival.host, f"systemctl start {rival.unit}", MAIL[:1])
            blocked[name].append(until_blocked)
            ended[name].append(until_ended)
    first = blocked["nftguard"].pop(0)  # which builds the script that every other start, and every boot, only loads
    yield Figure("start to blocked, first of all: nftguard", first, "ms", BASELINE, median(blocked[BASELINE]), 1)
    for what, found in (("start to blocked", blocked), ("systemctl start returns", ended)):
        yield from _against(what, "ms", {name: median(times) for name, times in found.items()}, TRIALS)


def _reach(rivals: Mapping[str, Rival]) -> Iterator[Figure]:
    """See what gets no answer, from the host and from a guest behind it. All must block IPv4 from the host."""
    progress("rivals: what each reaches")
    blocked, mail, other = {}, {}, {}
    for name, rival in rivals.items():
        open_ports = {peer: len(answering(rival.host, [(peer, port) for port in PORTS])) for peer in PEERS}
        if open_ports[PEERS[0]] or not answering(rival.host, [(PEERS[0], 80)]):
            raise RuntimeError(f"{name} does not do what it was set up for: {open_ports} ports are open")
        blocked[name] = 100 * (1 - open_ports[PEERS[1]] / len(PORTS))
        mail[name], other[name] = (
            100 * len(answering(rival.guest, [(peer, port) for peer in PEERS])) / len(PEERS) for port in (25, 80)
        )
    yield from _against("of the ports blocked over IPv6", "%", blocked)
    yield from _against("forwarded to port 25, passes", "%", mail)
    yield from _against("forwarded to port 80, passes", "%", other)


def _memory(rivals: Mapping[str, Rival], bare: Rival) -> Iterator[Figure]:
    """Read what the daemons hold, where there is one; resident, since the machines share their files' pages."""
    read = "cat /proc/$({})/status"
    python = _resident(bare.machine.run(["python3", "-c", "print(open('/proc/self/status').read())"]).stdout)
    for name, rival in rivals.items():
        if rival.way.daemon:
            pid = f"systemctl show --property=MainPID --value {rival.unit}"
            found = _resident(rival.machine.run(["sh", "-ec", read.format(pid)]).stdout)
            yield Figure(f"resident: {name}", found, "MiB", "bare python", python, 1)


def _resident(status: str) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def _flushes(rivals: Mapping[str, Rival], where: str = "") -> Iterator[Figure]:
    """Flush the ruleset, as another program's start would; then just after the daemon was killed."""
    found, killed = {}, {}
    progress("rivals: flushing the rules of each")
    for name, rival in rivals.items():
        found[name] = open_after(rival.machine, rival.host, _FLUSH, MAIL[0], _BOUND)
        if rival.way.daemon:
            rival.start()
            kill = _KILL.format(unit=rival.unit)
            killed[name] = open_after(rival.machine, rival.host, f"{kill}; {_FLUSH}", MAIL[0], _BOUND)
    what = f"{where}open of {_BOUND:g} s after"
    yield from _against(f"{what} a flush", "ms", found)
    yield from _against(f"{what} kill -9 and a flush", "ms", killed | {BASELINE: found[BASELINE]})


def _packets(rivals: Mapping[str, Rival]) -> Iterator[Figure]:
    """Time packets that pass, as `packet` does, of connections that conntrack knows as open and of new ones."""
    timers: dict[str, Callable[[], float]] = {}
    for name, rival in rivals.items():
        rival.machine.run(["sh", "-ec", _SINK.format(ports=" ".join(map(str, _OPEN)))])
        rival.host.add_sink()
        with rival.host.entered():
            for kind, ports, flags in (("open", _OPEN, ACK), ("new", _NEW, SYN)):
                timers[f"{kind} {name}"] = Sender([*ports] * (_BATCH // len(ports)), flags).timed
    found = in_turns("rivals", timers, ROUNDS)
    for kind in ("open", "new"):
        bare = found[f"{kind} none"]
        added = {
            name: median(took - none for took, none in zip(found[f"{kind} {name}"], bare, strict=True))
            for name in rivals
            if name != "none"
        }
        yield from _against(f"added to a packet, {kind} connection", "ns", added, ROUNDS)
