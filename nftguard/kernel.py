"""The one door to libnftables: `snapshot`, `check`, `apply`, each one transaction.

libnftables is not safe for threads: every call must come from the thread that made the object. The object is kept for
the life of the process: closing its netlink socket after a delete holds the kernel's commit lock for 16 to 36 ms (an
RCU grace period), and a new `nft` process pays that each time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from nftguard import netlink, nftjson, nftscript
from nftguard.errors import KernelError, NftguardError, NotPermittedError, UnavailableError
from nftguard.model import FAMILY, OWNED, TABLE, Table

if TYPE_CHECKING:
    from nftguard.plan import Plan

# linux/include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_GETTABLE, _NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS = 1, 1, 2
_FLAGS = {1: "dormant", 2: "owner", 4: "persist"} | {1 << bit: f"bit {bit}" for bit in range(3, 32)}


class Kernel(Protocol):
    """What nftguard asks of the kernel; the real one is `Nftables`, and tests hold a fake to the same contract."""

    @property
    def flags(self) -> frozenset[str]:
        """What a table of ours can be given here: owner and persist, or nothing."""
        ...

    def snapshot(self) -> Table | None:
        """Read our table; None where there is none. Raises KernelError."""
        ...

    def check(self, plan: Plan) -> None:
        """Ask whether the kernel would take the plan, without applying it. Raises KernelError when not."""
        ...

    def apply(self, plan: Plan) -> None:
        """Apply the whole plan or, raising KernelError, none of it."""
        ...


class Nftables:
    """The kernel of this network namespace, through libnftables. Raises UnavailableError where that is missing."""

    def __init__(self, context: Any = None, inherited: int | None = None) -> None:
        """Take a context that is open already, and the socket of an earlier process, to go on as the owner it was."""
        self._nft = context or connect()
        self.socket = _find_socket(inherited)
        """libnftables' own descriptor, whose other end is the owner of an owned table."""
        if inherited is not None:
            os.dup2(inherited, self.socket)
        self._nft.set_json_output(True)
        self._netlink = netlink.open_socket(netlink.NETLINK_NETFILTER, 1 << 16)

    def snapshot(self) -> Table | None:
        """Read our table; None where there is none."""
        flags = self._live_flags()
        if flags is None:
            return None
        try:
            if not self._is_text():
                return Table(flags=flags, foreign=frozenset({"something with bytes that are no text"}))
            if not flags or flags <= self.flags:
                return replace(nftjson.parse(self._list(f"table {FAMILY} {TABLE}")), flags=flags)
            # This one is to be replaced: its counters are all that is wanted of it, and nft 1.0.6 lists no more.
            counters = self._list(f"counters table {FAMILY} {TABLE}")
            return Table(flags=flags, counters=nftjson.parse_counters(counters))
        except nftjson.MalformedError as error:
            raise KernelError(f"list table {FAMILY} {TABLE}", f"libnftables' reply is malformed: {error}") from None

    def _is_text(self) -> bool:
        """Whether libnftables can say what the table holds.

        On an interface name that is not UTF-8, say, an assertion in its JSON ends this process, and every one after it
        (seen: nft 1.0.6). As plain text it comes out, and it is python's binding that cannot decode it.
        """
        self._nft.set_json_output(False)
        try:
            self._nft.cmd(f"list table {FAMILY} {TABLE}")
        except UnicodeDecodeError:
            return False
        finally:
            self._nft.set_json_output(True)
        return True

    @cached_property
    def flags(self) -> frozenset[str]:
        """What a table of ours can be given here: owner and persist, or nothing.

        Asked without changing anything: nft 1.0.6 takes `persist` for a syntax error, and a kernel refuses flags that
        it does not know. `owner` alone is of no use: such a table dies with its owner.
        """
        self._live_flags()  # without privilege it says so; libnftables would print it
        self._nft.set_dry_run(True)
        try:
            code, _, _ = self._nft.cmd(f"create table {FAMILY} {TABLE}-probe {{ flags owner, persist; }}")
        finally:
            self._nft.set_dry_run(False)
        return frozenset() if code else OWNED

    def close(self) -> None:
        """Close our own socket; libnftables' goes with the object."""
        self._netlink.close()

    def _list(self, what: str) -> str:
        code, out, err = self._nft.cmd(f"list {what}")
        if code:
            raise _error(f"list {what}", err)
        return str(out)

    def _live_flags(self) -> frozenset[str] | None:
        """Ask the kernel itself for our table's flags; None where there is no table.

        libnftables gives no error codes, only texts, and nft 1.0.6 reads stray memory for a table that has flags: the
        JSON then names something else, or is none.
        """
        command = f"look for table {FAMILY} {TABLE}"
        kind = netlink.NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETTABLE
        body = struct.pack("!BBH", netlink.NFPROTO_INET, 0, 0) + netlink.attribute(
            _NFTA_TABLE_NAME, TABLE.encode() + b"\0"
        )
        try:
            self._netlink.send(netlink.message(kind, body, netlink.NLM_F_REQUEST))
            for found in netlink.messages(self._netlink.recv(1 << 16)):
                if not netlink.raise_for_error(found):
                    bits = dict(netlink.attributes(found.body, netlink.NFGENMSG)).get(_NFTA_TABLE_FLAGS, b"\0\0\0\0")
                    (number,) = struct.unpack("!I", bits)
                    return frozenset(name for bit, name in _FLAGS.items() if number & bit)
        except PermissionError:
            raise NotPermittedError(command) from None
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
                raise UnavailableError("this kernel has no nf_tables; load the module nf_tables") from None
            raise KernelError(command, str(error.strerror)) from None
        raise KernelError(command, "no answer")

    def check(self, plan: Plan) -> None:
        """Ask whether the kernel would take the plan: it goes through the whole transaction and takes it back."""
        self._nft.set_dry_run(True)
        try:
            self.apply(plan)
        finally:
            self._nft.set_dry_run(False)

    def apply(self, plan: Plan) -> None:
        """Apply the whole plan or nothing."""
        if not plan:
            return
        text = nftscript.script(plan)
        code, _, err = self._nft.cmd(text)
        if code:
            raise _error(f"apply {len(plan.steps)} changes to table {FAMILY} {TABLE}", err)


def connect() -> Any:
    """Open libnftables. Raises UnavailableError."""
    try:
        import nftables

        return nftables.Nftables()
    except ImportError:
        raise UnavailableError(
            "python's nftables module is missing; install the package python3-nftables, and run nftguard with the "
            "system's python3 (or a virtual environment with --system-site-packages)"
        ) from None
    except OSError as error:
        raise UnavailableError(f"libnftables cannot be loaded ({error}); install the package libnftables1") from None


def _find_socket(other: int | None) -> int:
    """Find the descriptor of the one netfilter socket that is open besides `other`; libnftables does not tell it."""
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):  # noqa: PTH115
                continue
        except FileNotFoundError:  # the listing's own descriptor
            continue
        with socket.socket(fileno=os.dup(int(entry))) as found:
            if int(entry) != other and (found.family, found.proto) == (socket.AF_NETLINK, netlink.NETLINK_NETFILTER):
                return int(entry)
    raise UnavailableError("libnftables opened no netlink socket; is /proc mounted?")


def _error(command: str, text: str) -> NftguardError:
    if os.strerror(errno.EPERM) in text:  # libnftables gives texts, not codes; the text is strerror()'s
        return NotPermittedError(command)
    return KernelError(command, _first(text))


def _first(text: str) -> str:
    """Take the reason and the line it is about out of libnftables' three lines for each error."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~\t")]
    return "; ".join(line.removeprefix("Error: ") for line in lines[:2]) or "no reason given"
