"""The service on a real machine, run by systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.boot.machine import Machine


def test_a_started_service_blocks_and_says_so(machine: Machine) -> None:
    machine.run(["systemctl", "start", "nftguard"])
    assert machine.run(["systemctl", "is-active", "nftguard"]).stdout == "active\n"
    assert "dport" in machine.run(["nft", "list", "table", "inet", "nftguard"]).stdout
    records = machine.journal("--unit=nftguard")
    assert "applied" in {record.get("NFTGUARD_EVENT") for record in records}, records
