"""The Debian releases that nftguard is booted on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suite:
    """One release: what it is called, what it brings, and how nftguard is installed on it."""

    name: str
    release: int
    systemd: str
    """The major version of systemd."""
    nft: str
    packages: tuple[str, ...]
    """What only this release needs, besides `PACKAGES`."""
    venv: bool
    """Whether nftguard lives in a virtual environment, because the release's pydantic is too old for it."""

    def __str__(self) -> str:
        return f"debian{self.release}"


PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps"),
    *("iproute2", "nftables", "iptables", "conntrack", "libcap2-bin"),
    *("python3", "python3-nftables", "python3-systemd"),
)
"""What every machine has, besides Debian's essential packages and apt."""

BOOKWORM = Suite("bookworm", 12, systemd="252", nft="1.0.6", packages=(), venv=True)
TRIXIE = Suite(
    "trixie",
    13,
    systemd="257",
    nft="1.1.3",
    packages=("python3-click", "python3-dnspython", "python3-pydantic", "python3-structlog"),
    venv=False,
)
SUITES = (BOOKWORM, TRIXIE)
