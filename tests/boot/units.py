"""What systemd says of a unit in a machine, and what its process may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.boot.machine import Machine


def shown(machine: Machine, unit: str, what: str) -> str:
    """Give a property of a unit."""
    return machine.run(["systemctl", "show", "--property", what, "--value", unit]).stdout.strip()


def check_unprivileged(machine: Machine, unit: str) -> str:
    """See that a service has no capability and cannot get one, is small and shut in; give its process."""
    pid = shown(machine, unit, "MainPID")
    status = dict(
        line.split(":", 1) for line in machine.run(["cat", f"/proc/{pid}/status"]).stdout.splitlines() if ":" in line
    )
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert "0" not in status["Uid"].split()
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["VmRSS"].split()[0]) < 60_000, "kB"
    machine.run(["systemd-analyze", "security", "--no-pager", "--threshold=12", unit])
    return pid
