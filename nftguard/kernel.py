"""The one door to libnftables: `snapshot`, `check`, `apply`, each one transaction.

libnftables is not safe for threads: every call must come from the thread that made the object. The object is kept for
the life of the process: closing its netlink socket after a delete holds the kernel's commit lock for 16 to 36 ms (an
RCU grace period), and a new `nft` process pays that each time.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, Protocol

from nftguard import netlink, nftjson, nftscript
from nftguard.errors import KernelError, NotPermittedError, UnavailableError
from nftguard.model import FAMILY, TABLE, Table

if TYPE_CHECKING:
    from nftguard.plan import Plan

# linux/include/uapi/linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, and attributes
_GETTABLE, _NFPROTO_INET, _NFTA_TABLE_NAME, _NFTA_TABLE_FLAGS = 10 << 8 | 1, 1, 1, 2
_FLAGS = {1: "dormant", 2: "owner", 4: "persist"} | {1 << bit: f"bit {bit}" for bit in range(3, 32)}


class Kernel(Protocol):
    """What nftguard asks of the kernel; the real one is `Nftables`, and tests hold a fake to the same contract."""

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

    def __init__(self, context: Any = None) -> None:
        self._nft = context or connect()
        self._nft.set_json_output(True)
        self._netlink = netlink.listen(netlink.NETLINK_NETFILTER, (), 1 << 16)

    def snapshot(self) -> Table | None:
        """Read our table; None where there is none."""
        flags = self._flags()
        if flags is None:
            return None
        try:
            if not flags:
                return nftjson.parse(self._list(f"table {FAMILY} {TABLE}"))
            # No table of ours has flags, so this one is to be replaced: its counters are all that is wanted of it.
            return Table(flags=flags, counters=nftjson.parse_counters(self._list(f"counters table {FAMILY} {TABLE}")))
        except nftjson.MalformedError as error:
            raise KernelError(f"list table {FAMILY} {TABLE}", f"libnftables' reply is malformed: {error}") from None

    def close(self) -> None:
        """Close our own socket; libnftables' goes with the object."""
        self._netlink.close()

    def _list(self, what: str) -> str:
        code, out, err = self._nft.cmd(f"list {what}")
        if code:
            raise _error(f"list {what}", err)
        return str(out)

    def _flags(self) -> frozenset[str] | None:
        """Ask the kernel itself for our table's flags; None where there is no table.

        libnftables gives no error codes, only texts, and nft 1.0.6 reads stray memory for a table that has flags: the
        JSON then names something else, or is none.
        """
        command = f"look for table {FAMILY} {TABLE}"
        body = struct.pack("!BBH", _NFPROTO_INET, 0, 0) + netlink.attribute(_NFTA_TABLE_NAME, TABLE.encode() + b"\0")
        try:
            self._netlink.send(netlink.message(_GETTABLE, body, netlink.NLM_F_REQUEST))
            for found in netlink.messages(self._netlink.recv(1 << 16)):
                if not netlink.raise_for_error(found):
                    bits = dict(netlink.attributes(found.body, 4)).get(_NFTA_TABLE_FLAGS, b"\0\0\0\0")
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


def _error(command: str, text: str) -> KernelError:
    if os.strerror(errno.EPERM) in text:  # libnftables gives texts, not codes; the text is strerror()'s
        return NotPermittedError(command)
    return KernelError(command, _first(text))


def _first(text: str) -> str:
    """Take the reason and the line it is about out of libnftables' three lines for each error."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" ^~\t")]
    return "; ".join(line.removeprefix("Error: ") for line in lines[:2]) or "no reason given"
