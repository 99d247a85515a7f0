"""The little web server that metrics are read from: one page, a bounded number of clients, each with little time.

Whoever may connect may try to wear it out. A client that sends its question slowly, or takes the answer slowly, is let
go in the end; where too many are connected, the one that has been for longest is. One thread does all of it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard.errors import NftguardError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.metrics.page import Page

CLIENTS = 16
"""Clients at one time."""
PATIENCE = 10.0
"""Seconds that one client has, from its connection to the last byte of the answer."""
_HEAD = 8192  # bytes of a question; Prometheus sends some 300
_UNIX = "unix:"
_ABOUT = b"nftguard: metrics for Prometheus are at /metrics\n"


def listen(where: str) -> socket.socket:
    """Open a socket on `ADDRESS:PORT`, `[ADDRESS]:PORT` or `unix:/PATH`. Raises NftguardError, and ValueError."""
    if not where.startswith(_UNIX):
        host, port = _endpoint(where)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family)
        except OSError as error:
            raise NftguardError(_refused(where, error)) from None
    path = Path(where.removeprefix(_UNIX))
    if not path.is_absolute():
        raise ValueError(f"{where!r}: the path of a Unix socket begins with /")
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        sock.bind(str(path))
        path.chmod(0o666)  # it tells no more than status.json, which everybody may read
        sock.listen()
    except OSError as error:
        sock.close()
        raise NftguardError(_refused(where, error)) from None
    return sock


def _endpoint(where: str) -> tuple[str, int]:
    host, colon, port = where.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
        if not colon or not port.isascii() or not port.isdigit() or (address.version == 6) != (bare != host):
            raise ValueError
        if not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise ValueError(f"{where!r}: expected 127.0.0.1:9736, [::1]:9736 or unix:/PATH") from None
    return bare, int(port)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError where somebody does."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return  # bind() says that the name is taken
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(1)
            if other.connect_ex(str(path)) != errno.ECONNREFUSED:
                return  # a queue of clients that is full is EAGAIN
        path.unlink()


def _refused(where: str, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)  # create_server() adds more to its text
    return f"cannot listen on {where}: {reason}; give another with --listen"


def run(sockets: list[socket.socket], page: Page, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once whoever connects is answered."""
    with ExitStack() as stack:
        for sock in sockets:
            stack.callback(_close, sock)
        asyncio.run(_Server(page).run(sockets, ready))


def _close(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        with suppress(OSError):
            os.unlink(sock.getsockname())  # noqa: PTH108 - it is a string
    sock.close()


class _Server:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._clients: dict[asyncio.Task[None], None] = {}  # in the order in which they came

    async def run(self, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        # As many are also taken at once: of more the descriptors could run out, before the first is let go.
        servers = [
            await asyncio.start_server(self._attend, sock=sock.dup(), limit=_HEAD, backlog=CLIENTS) for sock in sockets
        ]
        ready()
        await end.wait()
        for server in servers:
            server.close()
        for client in list(self._clients):
            client.cancel()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task  # noqa: S101 - asyncio runs this as a task
        if len(self._clients) >= CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        self._clients[task] = None
        try:
            async with asyncio.timeout(PATIENCE):
                writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until the kernel has all of it
                try:
                    answer = self._answer(await reader.readuntil(b"\r\n\r\n"))
                except asyncio.LimitOverrunError:
                    answer = _response("431 Request Header Fields Too Large", b"the question is too long\n")
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError among them: it gave up, or we do
            pass
        finally:
            self._clients.pop(task, None)
            writer.transport.abort()

    def _answer(self, question: bytes) -> bytes:
        first, *lines = question.decode("latin-1").split("\r\n")
        match first.split(" "):
            case [method, target, "HTTP/1.0" | "HTTP/1.1"]:
                path = target.partition("?")[0]
            case _:
                return _response("400 Bad Request", b"not a question in HTTP\n")
        if path not in {"/", "/metrics"}:
            return _response("404 Not Found", _ABOUT)
        if method != "GET":
            return _response("405 Method Not Allowed", b"only GET\n", "Allow: GET")
        if path == "/":
            return _response("200 OK", _ABOUT)
        headers = (line.partition(":") for line in lines)
        accepted = [value.strip() for name, _, value in headers if name.strip().lower() == "accept"]
        kind, content = self._page.get(", ".join(accepted))
        return _response("200 OK", content, kind=kind)


def _response(status: str, content: bytes, *more: str, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + content
