"""The packet that `explain` is asked about, with what this host knows of it: who sends it, and which way it goes."""

from __future__ import annotations

import grp
import pwd
import socket
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from click import BadParameter, UsageError

from nftguard import values
from nftguard.errors import UnavailableError
from nftguard.model import Hook, Key
from nftguard.names import shown
from nftguard.who.cgroups import Tree, ids, mounted
from nftguard.who.owners import unit_at
from nftguard.who.users import Users
from nftguard.wire.route import toward

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.packet import Packet


def with_sender(packet: Packet, user: str | None, group: str | None, unit: str | None) -> tuple[Packet, list[str]]:
    """Look up who sends it. A name that is not on this host is refused: no packet can be from there."""
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
    try:
        word = values.account(word)
        found = pwd.getpwuid(int(word)) if word.isdigit() else pwd.getpwnam(word)
    except ValueError as error:
        raise BadParameter(str(error), param_hint="--user") from None
    except KeyError:
        if word.isdigit():
            return int(word), None
        raise BadParameter(f"{word!r} is no user of this host", param_hint="--user") from None
    return found.pw_uid, found.pw_gid


def _group(word: str) -> int:

    try:
        word = values.account(word)
        return int(word) if word.isdigit() else grp.getgrnam(word).gr_gid
    except ValueError as error:
        raise BadParameter(str(error), param_hint="--group") from None
    except KeyError:
        raise BadParameter(f"{word!r} is no group of this host", param_hint="--group") from None


def _groups_of(unit: str) -> tuple[int, ...]:
    """Give the ids of a unit's control group and of those above it, from below the root on; none: it does not run."""
    try:
        unit = values.unit(unit)
    except ValueError as error:
        raise BadParameter(str(error), param_hint="--unit") from None
    tree = Tree(mounted())
    try:
        for path in sorted(tree.unit(unit)):
            return ids(tree.root, path)
    except FileNotFoundError:  # ended meanwhile
        pass
    finally:
        tree.close()
    return ()


def with_way(packet: Packet) -> tuple[Packet, list[str]]:
    """Ask the kernel by which interface it would leave, and from which address, where that is not given."""
    missing = [name for name in (packet.inbound, packet.outbound) if name and not _is_there(name)]
    notes = [f"this host has no interface {shown(name)}" for name in missing]
    try:
        if packet.hook is Hook.OUTPUT and not missing and not (packet.outbound and packet.source):
            packet, more = _out(packet)
            return packet, notes + more
        if packet.hook is Hook.FORWARD and not packet.outbound:
            packet, more = _through(packet, "" if missing else packet.inbound or "")
            return packet, notes + more
    except UnavailableError as error:
        notes.append(str(error))
    return packet, notes


def _is_there(interface: str) -> bool:
    try:
        return bool(socket.if_nametoindex(interface))
    except (OSError, ValueError):  # none, or with a zero byte
        return False


def _out(packet: Packet) -> tuple[Packet, list[str]]:
    way = toward(packet.destination, packet.source or "", packet.uid, outbound=packet.outbound or "")
    notes = [f"it goes out by {way.interface}, as the routes are now"] if way.interface and not packet.outbound else []
    notes += [f"it comes from {way.source}"] if way.source and not packet.source else []
    found = replace(packet, outbound=packet.outbound or way.interface or None)
    return replace(found, source=packet.source or way.source or None), notes


def _through(packet: Packet, inbound: str) -> tuple[Packet, list[str]]:
    """Look the way of a forwarded packet up; by the destination alone where it is not known whence it comes.

    The kernel takes no packet in that comes from nowhere, and none from elsewhere that did not come in.
    """
    known = bool(packet.source and inbound)
    way = toward(packet.destination, packet.source or "", inbound=inbound) if known else toward(packet.destination)
    if way.interface == "lo":
        raise UsageError(
            f"{packet.destination} is this host's own: what comes for it is met on input, unless its destination is "
            "translated; name --hook input, or the address that it is translated to"
        )
    by = "" if known else " to that address"
    notes = [f"it goes out by {way.interface}, as the routes{by} are now"] if way.interface else []
    return replace(packet, outbound=way.interface or None), notes


def namer() -> Callable[[Key, str], str]:
    """Give what tells the names of users, groups and units by their numbers; the latter cost a walk.

    A control group that is no unit's own is named by its path.
    """
    known = {Key.USER: Users(Path("/etc/passwd")), Key.GROUP: Users(Path("/etc/group"))}
    tree = cache(lambda: Tree(mounted()))

    def named(key: Key, part: str) -> str:
        found = ""
        if key in known:
            found = known[key].name(int(part))
        elif key is Key.UNIT:
            with suppress(UnavailableError):
                path = tree().path(int(part))
                found = unit_at(path) or path
        return shown(found) if found else ""

    return named
