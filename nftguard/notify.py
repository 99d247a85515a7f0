"""What systemd is told: READY, RELOADING, STATUS, WATCHDOG, STOPPING. Without systemd each call does nothing."""

from __future__ import annotations

import os
import time

from nftguard.errors import UnavailableError

try:
    from systemd import daemon  # type: ignore[attr-defined]  # mypy takes our folder systemd/ for it
except ImportError:
    raise UnavailableError(
        "python's systemd module is missing; install the package python3-systemd, and run nftguard with the system's "
        "python3 (or a virtual environment with --system-site-packages)"
    ) from None

_STORED = "nftables"


def _line(text: str) -> str:
    """Make one line of what may hold anything: a line break would begin another variable, a zero byte is refused."""
    return " ".join(text.replace("\0", " ").split()).encode(errors="replace").decode()


def ready(status: str) -> None:
    """Tell that start or reload is done and the rules are live."""
    daemon.notify(f"READY=1\nSTATUS={_line(status)}")


def reloading(status: str) -> None:
    """Tell that a reload began; `ready` ends it. systemd pairs them by the monotonic time (sd_notify(3))."""
    daemon.notify(
        f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}\nSTATUS={_line(status)}"
    )


def status(text: str) -> None:
    """Tell how things are, in the line that `systemctl status` shows."""
    daemon.notify(f"STATUS={_line(text)}")


def alive() -> None:
    """Keep the watchdog from biting."""
    daemon.notify("WATCHDOG=1")


def stopping(status: str) -> None:
    """Tell that the service ends."""
    daemon.notify(f"STOPPING=1\nSTATUS={_line(status)}")


def keep(descriptor: int) -> None:
    """Give systemd a copy of a descriptor, to be handed to the next process of this service (FDSTORE, sd_notify(3)).

    Without FDPOLL=0 systemd would drop it on the first thing it hears on it. What it handed to us, it keeps already.
    """
    if kept() is not None:
        return
    daemon.notify(f"FDSTORE=1\nFDNAME={_STORED}\nFDPOLL=0", fds=[descriptor])


def kept() -> int | None:
    """Give the descriptor that an earlier process of this service had kept; None where there is none."""
    found = daemon.listen_fds_with_names(unset_environment=False)
    return next((descriptor for descriptor, name in found.items() if name == _STORED), None)


def watchdog_interval() -> float | None:
    """Give the seconds between two signs of life, half of what systemd allows; None where it does not watch."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
