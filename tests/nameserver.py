"""A DNS server of a test's own, in a namespace: UDP and TCP, IPv4 and IPv6, and it fails as it is told to.

`python -m tests.nameserver ZONE ADDRESS…` serves a zone, given as JSON, where it is started.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from tests.netns import Namespace

Zone = dict[str, "dict[str, list[str]] | str"]
"""What is known of a name: {"A": […], "AAAA": […]} or {"CNAME": ["other."]}, the name of an rcode, or how to fail:
"silence", "garbage", "another" (the answer to another question). A name that is not there does not exist."""


class Nameserver:
    """Serves until it is closed; `zone` may change meanwhile."""

    def __init__(self, netns: Namespace | None, *addresses: str) -> None:
        self.zone: Zone = {}
        self.ttl = 0
        self.asked: list[tuple[str, str, str]] = []
        """Name, type and way ("udp4", "tcp6", …) of each question."""
        self._selector = selectors.DefaultSelector()
        self._end, self._stop = socket.socketpair()
        self._selector.register(self._end, selectors.EVENT_READ)
        with netns.entered() if netns else contextlib.nullcontext():
            for address in addresses:
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, 53))
                    if kind == socket.SOCK_STREAM:
                        sock.listen()
                    self._selector.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._stop.send(b"x")
        self._thread.join(timeout=10)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._stop.close()
        self._selector.close()

    def times(self, name: str) -> int:
        """How often a name was asked for."""
        return sum(asked[0] == name for asked in self.asked)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._end:
                    return
                with contextlib.suppress(OSError):
                    self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        family = 6 if sock.family == socket.AF_INET6 else 4
        if sock.type == socket.SOCK_DGRAM:
            query, peer = sock.recvfrom(4096)
            if reply := self._reply(query, f"udp{family}", 512):
                sock.sendto(reply, peer)
            return
        client, _ = sock.accept()
        with client:
            client.settimeout(2)
            (length,) = struct.unpack("!H", client.recv(2, socket.MSG_WAITALL))
            if reply := self._reply(client.recv(length, socket.MSG_WAITALL), f"tcp{family}", 65535):
                client.sendall(struct.pack("!H", len(reply)) + reply)

    def _reply(self, query: bytes, way: str, most: int) -> bytes:
        message = dns.message.from_wire(query)
        question = message.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, way))
        known = self.zone.get(name)
        response = dns.message.make_response(message)
        response.flags |= dns.flags.RA
        if known == "silence":
            return b""
        if known == "garbage":
            return query[:2] + b"\xff" * 40
        if known == "another":
            other = dns.message.make_response(dns.message.make_query("evil.example", kind))
            other.id = message.id
            other.answer.append(dns.rrset.from_text("evil.example.", 60, "IN", "A", "203.0.113.66"))
            return other.to_wire()
        if known is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif isinstance(known, str):
            response.set_rcode(dns.rcode.from_text(known))
        else:
            while "CNAME" in known:
                [target] = known["CNAME"]
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", target))
                name = target.rstrip(".")
                found = self.zone[name]
                assert isinstance(found, dict)
                known = found
            if addresses := known.get(kind):
                response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", kind, *addresses))
        wire = response.to_wire(max_size=65535)
        if len(wire) > most:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire


if __name__ == "__main__":
    server = Nameserver(None, *sys.argv[2:])
    server.zone = json.loads(sys.argv[1])
    sys.stdout.write("serving\n")
    sys.stdout.flush()
