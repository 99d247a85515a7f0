"""The verb explain: what becomes of a packet, by the rules that the kernel has now."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.model import Key
    from nftguard.packet import Packet

_ENDPOINT = re.compile(r"\[(?P<six>[0-9A-Fa-f:.]+)\]:(?P<port6>\d{1,5})|(?P<four>[0-9.]+):(?P<port4>\d{1,5})", re.ASCII)
_EXIT = {True: 0, False: 1, None: 3}


def _address(text: str) -> str:
    """Read an address, in its shortest form. Raises ValueError."""
    found = ipaddress.ip_address(text)
    if "%" in text:
        raise ValueError(text)
    # What a socket sends to ::ffff:192.0.2.1 leaves as IPv4.
    return str(found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else str(found)


def _endpoint(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    """Read an address and a port; the verb ends with exit code 2 where it is none."""
    try:
        if (found := _ENDPOINT.fullmatch(value)) and 0 < int(found["port6"] or found["port4"]) < 65536:
            return _address(found["six"] or found["four"]), int(found["port6"] or found["port4"])
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is not an address and a port, like 203.0.113.7:25 or [2001:db8::1]:25")


def _source(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Read an address, and leave out a port behind it."""
    try:
        found = _ENDPOINT.fullmatch(value) if value else None
        return _address((found["six"] or found["four"]) if found else value) if value else None
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an address, like 198.51.100.7 or 2001:db8::1") from None


@click.command(short_help="Would a packet pass, and why?")
@click.argument("protocol", type=click.Choice(["tcp", "udp", "sctp", "dccp"]))
@click.argument("destination", metavar="ADDRESS:PORT", callback=_endpoint)
@click.option("--user", metavar="NAME", help="Who sends it: a name or number. Without it, whoever no exception names.")
@click.option("--group", metavar="NAME", help="The group of who sends it; the user's own without it.")
@click.option("--unit", metavar="UNIT", help="The systemd unit that sends it, as postfix.service.")
@click.option(
    "--from", "source", metavar="ADDRESS", callback=_source, help="Where it comes from; a port does not matter."
)
@click.option("--iface", metavar="NAME", help="The interface that it leaves by; asked of the kernel without it.")
@click.option("--in", "inbound", metavar="NAME", help="The interface that it comes in by: it is one that is forwarded.")
@click.option("--hook", type=click.Choice(["output", "forward", "input", "bridge"]), help="Where it is met.")
@click.option("--established", is_flag=True, help="It does not open a connection, but belongs to one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for machines.")
def explain(  # click gives each option
    protocol: str,
    destination: tuple[str, int],
    user: str | None,
    group: str | None,
    unit: str | None,
    source: str | None,
    iface: str | None,
    inbound: str | None,
    hook: str | None,
    established: bool,
    as_json: bool,
) -> None:
    """Would a packet pass, and by which block, rule and exception? Goes through the rules that the kernel has now.

    \b
    nftguard explain tcp 203.0.113.7:25 --user www-data
    nftguard explain tcp [2001:db8::1]:25 --in docker0

    \b
    exit 0  it passes
    exit 1  it is blocked
    exit 3  it cannot be said: there are rules that nftguard did not write

    What is not given, and not known otherwise, fits no exception; those that it might fit are listed. Rules of other
    programs are not looked at.
    """  # noqa: D301 - \b is click's
    from nftguard.explanation import document, render
    from nftguard.kernel import Nftables
    from nftguard.model import Hook, Protocol, Table
    from nftguard.packet import Packet
    from nftguard.trace import Trace, walk

    at = Hook(hook or ("forward" if inbound else "output"))
    if at is not Hook.OUTPUT and (user or group or unit):
        raise click.UsageError(f"only what this host sends has a user, group or unit; on {at} it has none")
    if (at is Hook.OUTPUT and inbound) or (at is Hook.INPUT and iface):
        raise click.UsageError(f"on {at} there is no {'--in' if inbound else '--iface'}; name another --hook")
    if established and protocol == "udp":
        raise click.UsageError("udp has no connections; leave out --established")
    to, port = destination
    if source and (":" in source) is not (":" in to):
        raise click.UsageError(f"{source} and {to} are not of one IP version")
    packet = Packet(at, Protocol(protocol), to, port, source, not established, inbound=inbound, outbound=iface)
    packet, notes = _with_sender(packet, user, group, unit)
    packet, way = _with_way(packet)
    notes += way
    table = Nftables().snapshot()
    gone = "there is no table inet nftguard, and nothing is blocked"
    trace = walk(table, packet) if table else Trace(passes=True, reason=gone)
    named = _namer()
    told = table or Table()
    if as_json:
        click.echo(json.dumps(document(trace, packet, told, named, notes)))
    else:
        click.echo(render(trace, packet, told, named, notes))
    sys.exit(_EXIT[trace.passes])


def _with_sender(packet: Packet, user: str | None, group: str | None, unit: str | None) -> tuple[Packet, list[str]]:
    """Look up who sends it. A name that is not on this host is refused: no packet can be from there."""
    from dataclasses import replace

    notes = []
    if user:
        uid, own = _user(user)
        packet = replace(packet, uid=uid, gid=own)
        if own is not None and not group:
            notes.append(f"it is sent with the user's own group, {own}")
    if group:
        packet = replace(packet, gid=_group(group))
    if unit:
        packet = replace(packet, groups=_groups_of(unit))
        notes += [] if packet.groups else [f"{unit} runs nothing now, so that no exception holds for it"]
    return packet, notes


def _user(word: str) -> tuple[int, int | None]:
    """Give a user's number, and that of the user's own group where it is known."""
    import pwd

    from nftguard import values

    try:
        word = values.account(word)
        found = pwd.getpwuid(int(word)) if word.isdigit() else pwd.getpwnam(word)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--user") from None
    except KeyError:
        if word.isdigit():
            return int(word), None
        raise click.BadParameter(f"{word!r} is no user of this host", param_hint="--user") from None
    return found.pw_uid, found.pw_gid


def _group(word: str) -> int:
    import grp

    from nftguard import values

    try:
        word = values.account(word)
        return int(word) if word.isdigit() else grp.getgrnam(word).gr_gid
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--group") from None
    except KeyError:
        raise click.BadParameter(f"{word!r} is no group of this host", param_hint="--group") from None


def _groups_of(unit: str) -> tuple[int, ...]:
    """Give the ids of a unit's control group and of those above it, from below the root on; none: it does not run."""
    from nftguard import values
    from nftguard.who.cgroups import Tree, mounted

    try:
        unit = values.unit(unit)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--unit") from None
    tree = Tree(mounted())
    try:
        for path in sorted(tree.unit(unit)):
            parts = path.strip("/").split("/")
            return tuple(tree.directory("/".join(parts[:depth])).stat().st_ino for depth in range(1, len(parts) + 1))
    except FileNotFoundError:  # ended meanwhile
        pass
    finally:
        tree.close()
    return ()


def _with_way(packet: Packet) -> tuple[Packet, list[str]]:
    """Ask the kernel by which interface it would leave, and from which address, where that is not given."""
    from dataclasses import replace

    from nftguard.errors import UnavailableError
    from nftguard.model import Hook
    from nftguard.wire.route import toward

    forwarded = packet.hook is Hook.FORWARD and packet.inbound and packet.source
    if (packet.hook is not Hook.OUTPUT and not forwarded) or (packet.outbound and packet.source):
        return packet, []
    try:
        way = toward(packet.destination, packet.source or "", packet.uid, packet.inbound or "", packet.outbound or "")
    except UnavailableError as error:
        return packet, [str(error)]
    notes = [f"it goes out by {way.interface}, as the routes are now"] if way.interface and not packet.outbound else []
    notes += [f"it comes from {way.source}"] if way.source and not packet.source else []
    found = replace(packet, outbound=packet.outbound or way.interface or None)
    return replace(found, source=packet.source or way.source or None), notes


def _namer() -> Callable[[Key, str], str]:
    """Give what tells the names of users, groups and control groups by their numbers; the latter cost a walk."""
    from functools import cache
    from pathlib import Path

    from nftguard.errors import UnavailableError
    from nftguard.model import Key
    from nftguard.names import shown
    from nftguard.who.cgroups import Tree, mounted
    from nftguard.who.users import Users

    known = {Key.USER: Users(Path("/etc/passwd")), Key.GROUP: Users(Path("/etc/group"))}
    tree = cache(lambda: Tree(mounted()))

    def named(key: Key, part: str) -> str:
        if key in known:
            found = known[key].name(int(part))
        elif key is Key.UNIT:
            try:
                found = tree().path(int(part))
            except UnavailableError:
                found = ""
        else:
            found = ""
        return shown(found) if found else ""

    return named
