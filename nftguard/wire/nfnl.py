"""What is asked of nf_tables over netlink itself, since libnftables says it wrongly, slowly or not at all.

Formats: linux/include/uapi/linux/netfilter/nf_tables.h. The kernel answers within the call to send(), so that the
socket need not wait; what a reply lacks is None or left out.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from nftguard.errors import KernelError, NotPermittedError, UnavailableError
from nftguard.model import BRIDGE, FAMILY, TABLE, family
from nftguard.nftset import Element
from nftguard.wire import netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GETTABLE, _NEWSETELEM, _GETSETELEM, _GETGEN, _NEWOBJ, _GETOBJ = 1, 12, 13, 16, 18, 19
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_GEN_ID = 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 1, 2, 3, 4
_OBJECT_COUNTER, _COUNTER_BYTES, _COUNTER_PACKETS = 1, 1, 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM, _DATA_VALUE = 1, 1
_ELEM_KEY, _ELEM_FLAGS, _ELEM_TIMEOUT, _ELEM_EXPIRATION, _ELEM_USERDATA, _ELEM_PAD, _ELEM_KEY_END = 1, 3, 4, 5, 6, 8, 10
_PLAIN = {_ELEM_KEY, _ELEM_FLAGS, _ELEM_TIMEOUT, _ELEM_EXPIRATION, _ELEM_USERDATA, _ELEM_PAD, _ELEM_KEY_END}
_USERDATA_FLAGS = 1  # nft's own note, of an interval without an upper end; libnftnl/include/udata.h
_FLAGS = {1: "dormant", 2: "owner", 4: "persist"} | {1 << bit: f"bit {bit}" for bit in range(3, 32)}

_BUFFER = 1 << 20  # a dump's replies, and those to a batch of questions
_QUESTIONS = 512  # of 84 bytes: a message must fit into half of the send buffer, 208 KiB by default
_NAME = TABLE.encode() + b"\0"


class Nfnl:
    """One netlink socket to nf_tables. Raises OSError where there is none."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket(netlink.NETLINK_NETFILTER, _BUFFER)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def flags(self, of: str = FAMILY) -> frozenset[str] | None:
        """Give the flags of our table of this family; None where there is no table.

        libnftables gives no error codes, only texts, and nft 1.0.6 reads stray memory for a table that has flags: the
        JSON then names something else, or is none. Raises NotPermittedError, UnavailableError, KernelError.
        """
        command = f"look for table {of} {TABLE}"
        try:
            (number,) = struct.unpack(
                "!I", self._ask(of, _GETTABLE, netlink.attribute(_TABLE_NAME, _NAME))[_TABLE_FLAGS]
            )
            return frozenset(name for bit, name in _FLAGS.items() if number & bit)
        except PermissionError:
            raise NotPermittedError(command) from None
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT}:
                raise UnavailableError("this kernel has no nf_tables; load the module nf_tables") from None
            raise KernelError(command, str(error.strerror)) from None
        except (LookupError, struct.error):
            raise KernelError(command, "no answer") from None

    def generation(self) -> int | None:
        """Give the number of the ruleset's generation: every transaction of anybody makes a new one."""
        try:
            (number,) = struct.unpack("!I", self._ask(FAMILY, _GETGEN, b"")[_GEN_ID])
            return int(number)
        except (OSError, LookupError, struct.error):
            return None

    def counter(self, name: str) -> tuple[int, int] | None:
        """Give the packets and bytes of a counter of our table; None where it is missing."""
        asked = netlink.attribute(_OBJ_TABLE, _NAME) + netlink.attribute(_OBJ_NAME, name.encode() + b"\0")
        asked += netlink.attribute(_OBJ_TYPE, struct.pack("!I", _OBJECT_COUNTER))
        try:
            return _counted(self._ask(family(name), _GETOBJ, asked))
        except (OSError, LookupError, struct.error):
            return None

    def counters(self, of: str) -> dict[str, tuple[int, int]]:
        """Give the packets and bytes of every counter of our table of this family. Raises KernelError."""
        asked = netlink.attribute(_OBJ_TABLE, _NAME)
        asked += netlink.attribute(_OBJ_TYPE, struct.pack("!I", _OBJECT_COUNTER))
        try:
            listed = [
                dict(netlink.attributes(body, netlink.NFGENMSG)) for body in self._dump(of, _GETOBJ, _NEWOBJ, asked)
            ]
            return {found[_OBJ_NAME].rstrip(b"\0").decode(errors="replace"): _counted(found) for found in listed}
        except OSError as error:
            raise KernelError(f"list the counters of table {of} {TABLE}", str(error.strerror)) from None
        except (LookupError, struct.error):
            raise KernelError(f"list the counters of table {of} {TABLE}", "the answer is malformed") from None

    def holds(self, name: str, keys: Iterable[bytes]) -> set[bytes]:
        """Tell which of these keys are in the set `name`: one question each, many in one system call."""
        asked = [
            _message(family(name), _GETSETELEM, _elements(name) + netlink.attribute(_LIST_ELEMENTS, _element(key)), 0)
            for key in keys
        ]
        found: set[bytes] = set()
        for at in range(0, len(asked), _QUESTIONS):
            try:
                self._socket.send(b"".join(asked[at : at + _QUESTIONS]))
            except OSError:
                break
            found.update(self._listed())
        return found

    def elements(self, name: str) -> list[bytes]:
        """List the keys of the set `name`."""
        try:
            self._socket.send(_message(family(name), _GETSETELEM, _elements(name), netlink.NLM_F_DUMP))
        except OSError:
            return []
        return list(self._listed())

    def members(self, name: str) -> list[Element]:
        """List the elements of the set `name` as they are. Raises KernelError."""
        try:
            bodies = self._dump(family(name), _GETSETELEM, _NEWSETELEM, _elements(name))
            return [_member(found) for body in bodies for found in _found(body)]
        except OSError as error:
            raise KernelError(f"list set {name}", str(error.strerror)) from None

    def _dump(self, of: str, kind: int, answer: int, asked: bytes) -> Iterator[bytes]:
        """Ask for all there is, and give what follows the header of each answer. Raises OSError."""
        self._socket.send(_message(of, kind, asked, netlink.NLM_F_DUMP))
        for reply in self._replies():
            netlink.raise_for_error(reply)
            if reply.kind == netlink.NFNL_SUBSYS_NFTABLES << 8 | answer:
                yield reply.body

    def _listed(self) -> Iterator[bytes]:
        # A refusal echoes the question, and with it the key: only an answer counts.
        kind = netlink.NFNL_SUBSYS_NFTABLES << 8 | _NEWSETELEM
        replies = (found.body for found in self._replies() if found.kind == kind)
        return (_data(element, _ELEM_KEY) for body in replies for element in _found(body))

    def _ask(self, of: str, kind: int, attributes: bytes) -> dict[int, bytes]:
        """Ask for one thing, and give its attributes. Raises OSError."""
        self._socket.send(_message(of, kind, attributes, 0))
        for found in self._replies():
            netlink.raise_for_error(found)
            return dict(netlink.attributes(found.body, netlink.NFGENMSG))
        return {}

    def _replies(self) -> list[netlink.Message]:
        """Read all that waits; a dump goes on as it is read."""
        found: list[netlink.Message] = []
        while True:
            try:
                found += netlink.messages(self._socket.recv(1 << 16))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost; the rest is to be drained all the same
                    return found


def _message(of: str, kind: int, attributes: bytes, flags: int) -> bytes:
    body = struct.pack("!BBH", netlink.NFPROTO_BRIDGE if of == BRIDGE else netlink.NFPROTO_INET, 0, 0) + attributes
    return netlink.message(netlink.NFNL_SUBSYS_NFTABLES << 8 | kind, body, netlink.NLM_F_REQUEST | flags)


def _elements(name: str) -> bytes:
    return netlink.attribute(_LIST_TABLE, _NAME) + netlink.attribute(_LIST_SET, name.encode() + b"\0")


def _element(key: bytes) -> bytes:
    return netlink.attribute(_LIST_ELEM, netlink.attribute(_ELEM_KEY, netlink.attribute(_DATA_VALUE, key)))


def _counted(found: dict[int, bytes]) -> tuple[int, int]:
    """Give packets and bytes. Raises LookupError and struct.error where that is no counter."""
    data = dict(netlink.attributes(found[_OBJ_DATA]))
    (packets,), (size,) = (struct.unpack("!Q", data[key]) for key in (_COUNTER_PACKETS, _COUNTER_BYTES))
    return packets, size


def _member(found: dict[int, bytes]) -> Element:
    note = found.get(_ELEM_USERDATA, b"")  # type, length, value, and so on
    noted = len(note) < 2 or (note[0] == _USERDATA_FLAGS and len(note) == 2 + note[1])
    return Element(
        _data(found, _ELEM_KEY),
        _data(found, _ELEM_KEY_END) if _ELEM_KEY_END in found else b"",
        int.from_bytes(found.get(_ELEM_FLAGS, b"")),
        int.from_bytes(found.get(_ELEM_EXPIRATION, b"")),
        more=not (noted and found.keys() <= _PLAIN),
    )


def _found(body: bytes) -> Iterator[dict[int, bytes]]:
    for kind, listed in netlink.attributes(body, netlink.NFGENMSG):
        if kind == _LIST_ELEMENTS:
            for _, element in netlink.attributes(listed):
                yield dict(netlink.attributes(element))


def _data(found: dict[int, bytes], kind: int) -> bytes:
    return dict(netlink.attributes(found.get(kind, b""))).get(_DATA_VALUE, b"")
