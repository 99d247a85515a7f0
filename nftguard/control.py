"""The daemon's root-only socket. While a daemon runs it is the only writer, and the verbs that change state ask it.

One request, one answer, each a JSON object in one message:
`{"verb": "apply", "config": "/etc/nftguard.toml", "namespace": 4026531840}` to `{"exit": 0, "text": "…"}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nftguard.errors import NotPermittedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MOST = 65536  # bytes of a message; the errors of a large configuration are cut there
_CLIENTS = 16
_TIMEOUT = 60.0  # seconds; longer than a reconcile of 65,535 ports takes


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, for which configuration (an absolute path) and network namespace (an inode)."""

    verb: str
    config: str
    namespace: int
    seconds: int = 0  # for `pause`


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon did: the exit code for the verb, and the text to print."""

    exit: int
    text: str


class Server:
    """The daemon's end. Raises OSError when the socket cannot be made."""

    def __init__(self, path: Path, handle: Callable[[Request], Answer]) -> None:
        self._handle = handle
        self._path = path
        self.clients: list[socket.socket] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # the lock says that whoever left it is gone
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            self.socket.bind(str(path))
        finally:
            os.umask(mask)
        self.socket.listen(_CLIENTS)

    def accept(self) -> socket.socket | None:
        """Take a client in; None when it is gone already, or not root."""
        try:
            client, _ = self.socket.accept()
        except OSError:
            return None
        client.setblocking(False)
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in {0, os.geteuid()}:
            client.close()
            return None
        self.clients.append(client)
        return client

    def surplus(self) -> socket.socket | None:
        """Give the client that has waited longest without a word, when there are too many."""
        return self.clients[0] if len(self.clients) > _CLIENTS else None

    def dismiss(self, client: socket.socket) -> None:
        """Let a client go without an answer."""
        self.clients.remove(client)
        client.close()

    def answer(self, client: socket.socket) -> None:
        """Read the client's request, carry it out, answer, and let the client go."""
        self.clients.remove(client)
        with client:
            try:
                request = Request(**json.loads(client.recv(_MOST)))
            except (OSError, TypeError, ValueError, RecursionError):
                return  # gone, or not one of ours
            answer = self._handle(request)
            with contextlib.suppress(OSError):  # gone meanwhile
                client.send(json.dumps({"exit": answer.exit, "text": answer.text[: _MOST // 8]}).encode())

    def close(self) -> None:
        """Close the socket and every client."""
        self._path.unlink(missing_ok=True)
        for sock in (self.socket, *self.clients):
            sock.close()


def listening(path: Path) -> bool:
    """Whether a daemon is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        return sock.connect_ex(str(path)) == 0


def ask(path: Path, request: Request) -> Answer | None:
    """Ask the daemon; None where none listens.

    Raises NotPermittedError, and UnavailableError when it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect(str(path))
        except PermissionError:
            raise NotPermittedError(f"ask the daemon at {path}") from None
        except OSError:
            return None
        try:
            sock.send(json.dumps(asdict(request)).encode())
            answer = json.loads(sock.recv(_MOST))
            return Answer(int(answer["exit"]), str(answer["text"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UnavailableError(
                f"the daemon at {path} did not answer ({error}); see `journalctl -u nftguard`"
            ) from None
