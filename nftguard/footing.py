"""What a change would cut off under the feet of whoever makes it: an SSH session, and the services of this host. Pure.

Only what passes by the rules as they are counts: who is cut off already made up his mind about that earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nftguard import trace
from nftguard.model import Hook, Protocol, Table
from nftguard.packet import Packet
from nftguard.wording import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST = 5  # services that are named


@dataclass(frozen=True, slots=True)
class Session:
    """A login by SSH, as SSH_CONNECTION has it (ssh(1)): addresses and ports of the client and of the server."""

    client: str
    client_port: int
    server: str
    server_port: int


def losses(
    old: Table | None, new: Table, sessions: Iterable[Session], listening: Iterable[tuple[Protocol, str, int]]
) -> tuple[str, ...]:
    """Name what passes now and would no more: the sessions, and new connections to what listens."""
    before = old or Table()
    found = [
        f"it would cut the SSH session from {endpoint(one.client, one.client_port)} to port {one.server_port}: {by}"
        for one in sessions
        if (by := next((by for packet in _packets(one) if (by := _stops(before, new, packet))), ""))
    ]
    cut = {
        f"{protocol} {endpoint(address, port)}": by
        for protocol, address, port in sorted(listening)
        if (by := _stops(before, new, _arriving(protocol, address, port)))
    }
    found += [f"it would block {what}, on which this host listens: {by}" for what, by in [*cut.items()][:_MOST]]
    if len(cut) > _MOST:
        found.append(f"and {len(cut) - _MOST} more on which this host listens")
    return tuple(found)


def _arriving(protocol: Protocol, address: str, port: int) -> Packet:
    """Give a packet to what listens; only this host itself reaches its loopback addresses."""
    if address == "::1" or address.startswith("127."):
        return Packet(Hook.INPUT, protocol, address, port, source=address, inbound="lo")
    return Packet(Hook.INPUT, protocol, address, port)


def _packets(session: Session) -> tuple[Packet, Packet]:
    """Give what comes in of a session, and what goes out, which sshd sends as root."""
    return (
        Packet(Hook.INPUT, Protocol.TCP, session.server, session.server_port, source=session.client, opens=False),
        Packet(
            Hook.OUTPUT, Protocol.TCP, session.client, session.client_port,
            source=session.server, opens=False, uid=0, gid=0,
        ),
    )  # fmt: skip


def _stops(before: Table, after: Table, packet: Packet) -> str:
    """Tell which block would stop a packet that is not stopped now; empty where none would."""
    told = trace.walk(after, packet)
    if told.passes or trace.walk(before, packet).passes is False:
        return ""
    return f"block {told.steps[-1].block} names port {packet.port} on {packet.hook}" if told.steps else told.reason
