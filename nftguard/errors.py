"""Errors: each carries what failed, on which object, what to do next, and the exit code of a verb that ends with it."""

from __future__ import annotations

import os
from dataclasses import dataclass

EX_FAILED = 1
EX_UNAVAILABLE = 69  # sysexits.h: a service or a kernel feature is not there
EX_NOPERM = 77
EX_CONFIG = 78


class NftguardError(Exception):
    """Something that an administrator is told in one line: `str()` of it is that line."""

    exit_code = EX_FAILED


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in the configuration."""

    file: str
    key: str  # "block[0].ports[3]"; empty when it concerns the whole file
    message: str

    def __str__(self) -> str:
        """Give the line that an administrator reads."""
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


class ConfigError(NftguardError):
    """The configuration is refused; `problems` names every reason at once."""

    exit_code = EX_CONFIG

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class KernelError(NftguardError):
    """The kernel or libnftables refused a command; `command` is what was tried, `reason` what it said."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"the kernel refused to {command}: {reason}")
        self.command = command
        self.reason = reason


class NotPermittedError(NftguardError):
    """What was to be done (`command`) needs a privilege that this process lacks, or another process owns the table."""

    exit_code = EX_NOPERM

    def __init__(self, command: str) -> None:
        why = "needs root, or CAP_NET_ADMIN" if os.geteuid() else "CAP_NET_ADMIN is missing, or another owns the table"
        super().__init__(f"cannot {command}: not permitted; {why}")


class UnavailableError(NftguardError):
    """Something that nftguard cannot work without is not on this host."""

    exit_code = EX_UNAVAILABLE


class BusyError(NftguardError):
    """Another nftguard holds the lock."""
