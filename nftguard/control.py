"""The daemon's root-only socket. While a daemon runs it is the only writer, and the verbs that change state ask it.

One request, one answer, each a JSON object in one message:
`{"verb": "apply", "config": "/etc/nftguard.toml", "namespace": 4026531840}` to `{"exit": 0, "text": "…"}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, state
from nftguard.errors import NotPermittedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOST = 65536  # bytes of a message; the errors of a large configuration are cut there
_CLIENTS = 16
_TIMEOUT = 60.0  # seconds; longer than a reconcile of 65,535 ports takes
_NOBODY = (1 << 32) - 1  # the login user of what nobody started by logging in, audit_setloginuid(3)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, for which configuration (an absolute path) and network namespace (an inode)."""

    verb: str
    config: str
    namespace: int
    arguments: Mapping[str, str | int | bool] = field(default_factory=dict)
    """What else the verb is told. It may be anything: who carries the verb out checks it."""
    by: int = 0
    """The user who asks, as the daemon sees it: the one who logged in, where that is known."""

    @classmethod
    def read(cls, data: bytes, by: int) -> Request:
        """Read what a client sent. Raises ValueError and RecursionError when it is none of ours."""
        found = json.loads(data)
        kinds = {"verb": str, "config": str, "namespace": int, "arguments": dict, "by": int}
        if not isinstance(found, dict) or any(type(value) is not kinds.get(name) for name, value in found.items()):
            raise ValueError("not a request")
        if any(type(value) not in {str, int, bool} for value in found.get("arguments", {}).values()):
            raise ValueError("not the arguments of a request")
        try:
            return cls(**found | {"by": by})
        except TypeError as error:
            raise ValueError(str(error)) from None

    def seconds(self, most: int) -> int:
        """Give for how long it is to be. Raises ValueError where that is not said, or too long."""
        found = self.arguments.get("seconds")
        if type(found) is not int or not 1 <= found <= most:
            raise ValueError(f"{self.verb} takes 1 to {most} s")
        return found


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

    def attend(self, selector: selectors.BaseSelector) -> None:
        """Take clients in from now on: what the selector gives for a socket is to be called when it is readable."""
        selector.register(self.socket, selectors.EVENT_READ, partial(self._welcome, selector))

    def _welcome(self, selector: selectors.BaseSelector) -> None:
        if client := self.accept():
            selector.register(client, selectors.EVENT_READ, partial(self._serve, selector, client))
            if surplus := self.surplus():
                selector.unregister(surplus)
                self.dismiss(surplus)

    def _serve(self, selector: selectors.BaseSelector, client: socket.socket) -> None:
        if client in self.clients:  # else dismissed in the same batch of events
            selector.unregister(client)
            self.answer(client)

    def accept(self) -> socket.socket | None:
        """Take a client in; None when it is gone already, or not root."""
        try:
            client, _ = self.socket.accept()
        except OSError:
            return None
        client.setblocking(False)
        _, uid = _peer(client)
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
                request = Request.read(client.recv(_MOST), _login(*_peer(client)))
            except (OSError, ValueError, RecursionError):
                return  # gone, or not one of ours
            answer = self._handle(request)
            with contextlib.suppress(OSError):  # gone meanwhile
                client.send(json.dumps({"exit": answer.exit, "text": answer.text[: _MOST // 8]}).encode())

    def close(self) -> None:
        """Close the socket and every client."""
        self._path.unlink(missing_ok=True)
        for sock in (self.socket, *self.clients):
            sock.close()


def _peer(client: socket.socket) -> tuple[int, int]:
    """Give the process and the user at the other end, as they were when it connected: unix(7), SO_PEERCRED."""
    pid, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _login(pid: int, uid: int) -> int:
    """Give the user who logged in and became `uid`, by sudo say; where that is not known, `uid`. proc(5): loginuid."""
    try:
        login = int(Path(f"/proc/{pid}/loginuid").read_bytes())
    except (OSError, ValueError):  # a kernel without audit; gone meanwhile
        return uid
    return uid if login == _NOBODY else login


def path() -> Path:
    """Name the socket."""
    return Path(bootscript.run_dir()) / "control"


def listening() -> bool:
    """Whether a daemon is there; also one that hangs, and takes nobody in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        return sock.connect_ex(str(path())) in {0, errno.EAGAIN}


def ask(verb: str, config: Path, /, **arguments: str | int | bool) -> Answer | None:
    """Ask the daemon of this network namespace for a verb; None where none listens.

    Raises NotPermittedError, and UnavailableError when it does not answer.
    """
    request = Request(verb, str(config.absolute()), state.namespace(), arguments)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        try:
            _connect(sock)
        except PermissionError:
            raise NotPermittedError(f"ask the daemon at {path()}") from None
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise UnavailableError(f"the daemon at {path()} cannot be asked: {error.strerror}") from None
        try:
            sock.send(json.dumps(asdict(request)).encode())
            answer = json.loads(sock.recv(_MOST))
            return Answer(int(answer["exit"]), str(answer["text"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UnavailableError(
                f"the daemon at {path()} did not answer ({error}); see `journalctl -u nftguard`"
            ) from None


def _connect(sock: socket.socket) -> None:
    """Connect, and wait where too many ask at once: a Unix socket with a timeout says EAGAIN then. Raises OSError."""
    end = time.monotonic() + _TIMEOUT
    while code := sock.connect_ex(str(path())):
        if code != errno.EAGAIN or time.monotonic() >= end:
            raise OSError(code, os.strerror(code))
        time.sleep(0.02)
