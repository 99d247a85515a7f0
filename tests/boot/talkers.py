"""Clients of a SOCKS 5 proxy, each busy by chance twenty times a second, and whom they talk to; run by `crowd`.

    talkers.py HOST:PORT ADDRESS@PROXY:PORT...

HOST is where the echo that they talk to listens; each ADDRESS is a client's own. Reads `NUMBER COUNT PORT` from its
input: so many times that client asks for that port at HOST, and waits for an answer that will not come. NUMBER may be
several, as `3,7`: they do it together. Says how often a second each client has talked, in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
import time

_random = random.Random()  # noqa: S311 - a simulation
RATE = 20.0  # times a second
SHORT = 0.1  # of those, so many are a connection of their own, made and closed
PATIENCE = 5.0  # seconds after which a client gives up
GAP = (0.3, 0.8)  # seconds between attempts

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Talker:
    """One client."""

    def __init__(self, place: str, host: str, port: int) -> None:
        self.address, _, proxy = place.partition("@")
        self.proxy, _, number = proxy.partition(":")
        self.proxy_port = int(number)
        self.host, self.port = host, port
        self.said = 0

    async def through(self, port: int) -> Streams:
        """Connect to a port at the host through the proxy (RFC 1928)."""
        reader, writer = await asyncio.open_connection(self.proxy, self.proxy_port, local_addr=(self.address, 0))
        try:
            writer.write(b"\5\1\0")
            assert await reader.readexactly(2) == b"\5\0"
            writer.write(b"\5\1\0\1" + socket.inet_aton(self.host) + struct.pack("!H", port))
            assert (await reader.readexactly(10))[:2] == b"\5\0"
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def say(self, streams: Streams) -> None:
        reader, writer = streams
        writer.write(bytes(64))
        await reader.readexactly(64)
        self.said += 1

    async def talk(self) -> None:
        """Be busy, for ever; connect anew where the proxy hangs up, as anybody would."""
        while True:
            with contextlib.suppress(OSError, EOFError, AssertionError):
                streams = await self.through(self.port)
                while True:
                    await asyncio.sleep(_random.expovariate(RATE))
                    if _random.random() < SHORT:
                        own = await self.through(self.port)
                        await self.say(own)
                        own[1].close()
                    else:
                        await self.say(streams)
            await asyncio.sleep(0.1)

    async def attempt(self, port: int) -> None:
        with contextlib.suppress(OSError, EOFError, AssertionError):
            async with asyncio.timeout(PATIENCE):
                reader, writer = await self.through(port)
                try:
                    await reader.read(1)
                finally:
                    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()


async def main(host: str, port: int, places: list[str]) -> None:
    """Talk until the input ends."""
    await asyncio.start_server(echo, host, port, backlog=256)
    talkers = [Talker(place, host, port) for place in places]
    tasks = []
    for talker in talkers:
        tasks.append(asyncio.create_task(talker.talk()))
        await asyncio.sleep(0.01)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _tell("talking")
    begun, before = time.monotonic(), sum(talker.said for talker in talkers)
    while line := await commands.readline():
        numbers, count, target = line.split()
        guilty = [talkers[int(number)] for number in numbers.split(b",")]
        for _ in range(int(count)):
            await asyncio.sleep(_random.uniform(*GAP))
            _random.shuffle(guilty)
            tasks += [asyncio.create_task(talker.attempt(int(target))) for talker in guilty]
        await asyncio.sleep(0.3)
        said = sum(talker.said for talker in talkers) - before
        _tell(f"{said / len(talkers) / (time.monotonic() - begun):.1f}")


def _tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    where, _, listening = sys.argv[1].partition(":")
    asyncio.run(main(where, int(listening), sys.argv[2:]))
