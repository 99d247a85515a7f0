"""Install: from apt on a Debian that never had it to blocked, as traffic sees it; and the disk that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from bench.figure import Figure, progress
from bench.namespace import Namespace
from bench.probe import timed
from bench.rival import MAIL, POLICY, UFW
from tests.boot import image
from tests.boot.machine import Machine
from tests.boot.suites import SUITES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.boot.image import Image

TRIALS = 3
BASELINE = "ufw"
_PAUSE = 0.01  # seconds between attempts, so as to take little from apt
_APT = "DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes"
_WAYS = {
    BASELINE: f"{_APT} ufw && {UFW}",
    "nftguard": f"{_APT} ./nftguard.deb && systemctl enable --now nftguard",
    "firewalld": f"{_APT} firewalld && cp mail-out.xml /etc/firewalld/policies && systemctl restart firewalld",
}
# What apt keeps of its own work is no part of what it installed.
_DISK = "du --summarize --total --block-size=1K --exclude=/var/lib/apt /etc /usr /var/lib | tail -n 1"
_PACKAGES = r"dpkg-query --show --showformat='${Package} ${Installed-Size}\n'"


@dataclass(frozen=True, slots=True)
class _Installed:
    blocked: float
    """Milliseconds until port 25 was blocked over IPv4 and IPv6."""
    ended: float
    """Milliseconds until the command ended."""
    disk: float
    """MiB that the disk holds more than before."""
    packages: dict[str, int]
    """What came, with its Installed-Size in KiB."""


def measure() -> list[Figure]:
    """Measure on each Debian, with the packages at hand so that nothing is downloaded, against ufw with the same ports.

    It is a small Debian, but has python, nft and iptables; what else is needed or recommended comes along, and counts.
    """
    figures: list[Figure] = []
    for suite in SUITES:
        bare = image.bare(suite, announce=progress)
        found: dict[str, list[_Installed]] = {way: [] for way in _WAYS}
        for trial in range(TRIALS):
            for way, command in _WAYS.items():
                progress(f"install: {way} on {suite}, {trial + 1} of {TRIALS}")
                found[way].append(_install(bare, command))
        base = _median(found.pop(BASELINE))
        for way, trials in found.items():
            figures += _figures(f"{suite}, {way}", _median(trials), base)
            own, of_base = trials[0].packages[way] / 1024, base.packages[BASELINE] / 1024
            figures.append(Figure(f"{suite}, {way}: of these its own", own, "MiB", BASELINE, of_base, TRIALS))
    return figures


def _figures(who: str, got: _Installed, base: _Installed) -> Iterator[Figure]:
    yield Figure(f"{who}: to blocked", got.blocked, "ms", BASELINE, base.blocked, TRIALS)
    yield Figure(f"{who}: until the command returns", got.ended, "ms", BASELINE, base.ended, TRIALS)
    yield Figure(f"{who}: on disk, {len(got.packages)} packages", got.disk, "MiB", BASELINE, base.disk, TRIALS)


def _median(trials: list[_Installed]) -> _Installed:
    """Give the median times; what is installed is the same each time."""
    times = (median(each.blocked for each in trials), median(each.ended for each in trials))
    return _Installed(*times, trials[0].disk, trials[0].packages)


def _install(bare: Image, command: str) -> _Installed:
    """Install on a machine of its own."""
    with Machine(bare) as machine, Namespace(machine.popen(["sleep", "infinity"]).pid) as network:
        machine.write_file("/root/mail-out.xml", POLICY)
        disk, before = _disk(machine), _packages(machine)
        blocked, ended = timed(machine, network, f"cd /root && {{ {command}; }} >install.log 2>&1", MAIL, _PAUSE)
        came = {name: size for name, size in _packages(machine).items() if name not in before}
        return _Installed(blocked, ended, _disk(machine) - disk, came)


def _disk(machine: Machine) -> float:
    return int(machine.run(["sh", "-c", _DISK]).stdout.split()[0]) / 1024


def _packages(machine: Machine) -> dict[str, int]:
    listed = machine.run(["sh", "-c", _PACKAGES]).stdout
    return {name: int(size) for name, size in map(str.split, listed.splitlines())}
