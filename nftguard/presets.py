"""Presets: ports that are blocked together, and why. Pure.

They carry numbers, since a minimal Debian 12 has no /etc/services. Numbers and uses are those of IANA's service name
and port number registry, unless the reason says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from nftguard.model import Protocol
from nftguard.ports import Ports


@dataclass(frozen=True, slots=True)
class Preset:
    """Ports under one name, with the protocols to block them for and a sentence on why one does."""

    ports: tuple[Ports, ...]
    why: str
    protocols: tuple[Protocol, ...] = (Protocol.TCP,)


def _listed(*ports: int | tuple[int, int]) -> tuple[Ports, ...]:
    return tuple(Ports(*port) if isinstance(port, tuple) else Ports(port, port) for port in ports)


PRESETS: dict[str, Preset] = {
    "mail": Preset(
        _listed(25, 109, 110, 143, 465, 587, 993, 995),
        "Sending and reading mail, both: a host whose users have no business with mail sends no spam, and nobody tries "
        "stolen mailboxes from it.",
    ),
    "smtp": Preset(
        _listed(25),
        "Delivery from server to server, as spam is delivered. Programs and people that log in to a mail server send "
        "over 465 and 587, which stay open.",
    ),
    "mail-submission": Preset(
        _listed(465, 587),
        "Sending through a mail server with a login: with stolen passwords spam goes out this way, too.",
    ),
    "mail-reading": Preset(
        _listed(109, 110, 143, 993, 995),
        "POP and IMAP: where stolen passwords of mailboxes are tried out.",
    ),
    "remote-shell": Preset(
        _listed(22, 23, (512, 514)),
        "SSH, telnet, rexec, rlogin and rsh: passwords of other hosts are guessed over them. Stops git over ssh, too.",
    ),
    "iot-worms": Preset(
        _listed(23, 2323, 5555, 7547, 37215, 52869),
        "Telnet and the doors that Mirai and its kin spread by: telnet beside its port, Android's adb, TR-069 of "
        "routers, Huawei's and Realtek's UPnP.",
    ),
    "windows": Preset(
        _listed(135, (137, 139), 445, 3389, 5985, 5986),
        "RPC, NetBIOS, SMB, remote desktop and WinRM: what worms and extortionists scan for; SMB towards the internet "
        "also gives password hashes away.",
        (Protocol.TCP, Protocol.UDP),
    ),
    "remote-desktop": Preset(
        _listed(3389, (5900, 5903)),
        "Remote desktop and VNC: passwords of other hosts are guessed over them.",
        (Protocol.TCP, Protocol.UDP),
    ),
    "irc": Preset(
        _listed(194, (6660, 6669), 6697, 7000),
        "Chat over which older botnets take their orders: 6660 to 6669 and 7000 by custom, 6697 with TLS.",
    ),
    "databases": Preset(
        _listed(1433, 1521, 3306, 5432, 6379, 9200, 11211, 27017),
        "SQL Server, Oracle, MySQL, PostgreSQL, Redis, Elasticsearch, memcached, MongoDB: scanned for ones without a "
        "password. An application needs its own: let it through with allow.",
    ),
    "amplifiers": Preset(
        _listed(17, 19, 111, 389, 1900, 3702, 11211),
        "Services that answer a small datagram with a large one (qotd, chargen, portmap, CLDAP, SSDP, WS-Discovery, "
        "memcached): asked in a victim's name, they flood it. DNS (53) and NTP (123) belong here too, but every host "
        "needs them.",
        (Protocol.UDP,),
    ),
}
