"""The Debian releases that nftguard is booted on."""

from __future__ import annotations

from dataclasses import dataclass

from builder import deb


@dataclass(frozen=True, slots=True)
class Suite:
    """One release: what it is called, what it brings, and how nftguard is installed on it."""

    name: str
    release: int
    systemd: str
    """The major version of systemd."""
    nft: str
    needs: tuple[str, ...]
    """What nftguard's package needs on this release, besides `NEEDS`."""
    venv: bool
    """Whether nftguard's package brings a virtual environment, because the release's pydantic is too old for it."""

    def __str__(self) -> str:
        return f"debian{self.release}"

    @property
    def packaged(self) -> deb.Release:
        """The release as the builder of packages knows it."""
        return deb.Release(self.name, backport=self.venv)


PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps"),
    *("iproute2", "nftables", "iptables", "conntrack", "libcap2-bin"),
    *("passwd", "login", "libpam-systemd", "dbus-user-session", "python3"),
    *("microsocks", "shadowsocks-libev"),
)
"""What every machine has, besides Debian's essential packages and apt: users can log in, and proxies be started.

All in one, for a base of their own each would take half a minute."""

NEEDS = ("netbase", "python3-nftables", "python3-systemd")
"""What nftguard's package needs on every release, besides those."""

AT_HAND = ("firewalld", "ufw", "go-md2man", "make", "python3-venv", "python3-apt", "prometheus")
"""What else can be installed from a machine's own repository: other firewalls, what `make install` and Ansible use, and
who scrapes."""

BOOKWORM = Suite("bookworm", 12, systemd="252", nft="1.0.6", needs=(), venv=True)
TRIXIE = Suite(
    "trixie",
    13,
    systemd="257",
    nft="1.1.3",
    needs=(
        *("python3-click", "python3-dnspython", "python3-pydantic", "python3-structlog"),
        "python3-prometheus-client",
    ),
    venv=False,
)
SUITES = (BOOKWORM, TRIXIE)
