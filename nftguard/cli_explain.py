"""The verb explain: what becomes of a packet, by the rules that the kernel has now."""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from nftguard import complete, screen
from nftguard.cli_allow import HOOKS, PROTOCOLS

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.packet import Packet
    from nftguard.trace import Trace

_ENDPOINT = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<four>[^:\[\]]+)):(?P<port>[^:\[\]]+)")
_EXIT = {True: 0, False: 1, None: 3}


def _address(text: str, version: int | None = None) -> str:
    """Read an address, in its shortest form. Raises ValueError, with what it is instead."""
    from nftguard import values

    if version != 6 and values.is_host(text):
        raise ValueError(f"{text!r} is a name; ask for its address: getent ahosts {text}")
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        found = None
    if found is None or "%" in text or version not in {None, found.version}:
        raise ValueError(f"{text!r} is not an address, like 198.51.100.7 or 2001:db8::1")
    # What a socket sends to ::ffff:192.0.2.1 leaves as IPv4.
    return str(found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else str(found)


def _host(found: re.Match[str]) -> str:
    return _address(found["six"], 6) if found["six"] else _address(found["four"], 4)


def _port(word: str) -> int:
    """Read a port: its number, or its name in /etc/services. Raises ValueError."""
    from nftguard import services

    ports = [port for stretch in services.parse(word) for port in (stretch.first, stretch.last)]
    if len(set(ports)) > 1:
        raise ValueError(f"{word} is more than one port; ask for one at a time")
    return ports[0]


def _endpoint(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    """Read an address and a port; the verb ends with exit code 2 where it is none."""
    found = _ENDPOINT.fullmatch(value)
    if not found:
        raise click.BadParameter(f"{value!r} is not an address and a port, like 203.0.113.7:25 or [2001:db8::1]:smtp")
    try:
        return _host(found), _port(found["port"])
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _source(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Read an address, and leave out a port behind it."""
    try:
        found = _ENDPOINT.fullmatch(value) if value else None
        return _host(found) if found else _address(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Would a packet pass, and why?")
@click.argument("protocol", type=click.Choice(PROTOCOLS))
@click.argument("destination", metavar="ADDRESS:PORT", callback=_endpoint, shell_complete=complete.destination)
@click.option(
    "--user",
    metavar="NAME",
    shell_complete=complete.users,
    help="Who sends it: a name or number. Without it, whoever no exception names.",
)
@click.option(
    "--group",
    metavar="NAME",
    shell_complete=complete.groups,
    help="The group of who sends it; the user's own without it.",
)
@click.option(
    "--unit",
    metavar="UNIT",
    shell_complete=complete.units,
    help="The systemd unit that sends it, as postfix.service.",
)
@click.option(
    "--from", "source", metavar="ADDRESS", callback=_source, help="Where it comes from; a port does not matter."
)
@click.option(
    "--iface",
    metavar="NAME",
    shell_complete=complete.interfaces,
    help="The interface that it leaves by; asked of the kernel without it.",
)
@click.option(
    "--in",
    "inbound",
    metavar="NAME",
    shell_complete=complete.interfaces,
    help="The interface that it comes in by: it is one that is forwarded.",
)
@click.option("--hook", type=click.Choice(HOOKS), help="Where it is met.")
@click.option("--established", is_flag=True, help="It does not open a connection, but belongs to one.")
@screen.json_option()
@click.pass_context
def explain(  # click gives each option
    ctx: click.Context,
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
    nftguard explain tcp [2001:db8::1]:smtp --in docker0

    \b
    exit 0  it passes
    exit 1  it is blocked
    exit 3  it cannot be said: there are rules that nftguard did not write, or
            the way out is not known

    What is not given, and not known otherwise, fits no exception; those that it might fit are listed, and those of the
    configuration that stand for nothing now. Rules of other programs are not looked at.
    """
    from nftguard import asked
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
    packet, notes = asked.with_sender(packet, user, group, unit)
    packet, way = asked.with_way(packet)
    with screen.Wait("reading the rules"):
        table = Nftables().snapshot()
    gone = "there is no table inet nftguard, and nothing is blocked"
    trace = _unsure(walk(table, packet), packet) if table else Trace(passes=True, reason=gone)
    notes += [*way, *_idle(ctx.meta["config"], trace, packet)]
    named, told = asked.namer(), table or Table()
    if as_json:
        screen.document(document(trace, packet, told, named, notes))
    else:
        screen.show(render(trace, packet, told, named, notes, screen.look(sys.stdout)))
    sys.exit(_EXIT[trace.passes])


def _unsure(trace: Trace, packet: Packet) -> Trace:
    """Say that it cannot be said, where the way out decides, and neither was it given nor could it be looked up."""
    from nftguard.model import Hook, Key

    guessed = [[hit.keys for hit in step.hits if not hit.known] for step in trace.unless]
    if packet.hook not in {Hook.FORWARD, Hook.BRIDGE} or [(Key.LEAVES,)] not in guessed:
        return trace
    ask = "--from or --iface" if packet.hook is Hook.FORWARD and not packet.source else "--iface"
    return replace(trace, passes=None, steps=trace.steps[:-1], reason=f"the way out is not known without {ask}")


def _idle(config: Path, trace: Trace, packet: Packet) -> list[str]:
    """Name what the block that stops it allows besides, and what lets nothing through now, as far as that is known."""
    from nftguard.config import load
    from nftguard.errors import ConfigError
    from nftguard.explanation import idle
    from nftguard.surroundings import once

    if trace.passes is not False:
        return []
    try:
        found = load(config)
    except ConfigError:  # it explains what the kernel has, and needs no configuration
        return []
    blocks = [block for block in found.block if block.name == trace.steps[-1].block]
    return idle(blocks[0], once(found)[0], packet) if blocks else []
