"""Fifty clients with addresses of their own, at the peer of a machine, and the real proxy in it that serves them."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.boot.waiting import wait_until

if TYPE_CHECKING:
    import subprocess

    from tests.boot.image import Image
    from tests.boot.machine import Machine

CLIENTS = 50
ATTEMPTS = 7
PROXIES = ("microsocks", "ss-server")
SURE = 0.8

_MACHINE, _PEER = "192.0.2.2", "192.0.2.1"
_ADDRESSES = [f"192.0.2.{100 + number}" for number in range(CLIENTS)]
_ECHO = f"{_PEER}:7777"
_PASSWORD = "secret"  # noqa: S105 - of a proxy that lives for seconds
_FIRST_UID = 30000  # and the port of each ss-local
_UNIT = "proxy.service"
_TALKERS = Path(__file__).with_name("talkers.py")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was recorded of attempts in a row."""

    guilty: frozenset[str]
    named: tuple[tuple[str, float], ...]
    """With each attempt, the likeliest client and how likely it was."""
    rate: float
    """How often a second each client talked."""

    @property
    def right(self) -> bool:
        """Whether one who is guilty was named in the end, and surely."""
        client, confidence = self.named[-1]
        return client in self.guilty and confidence >= SURE

    @property
    def wrong(self) -> bool:
        """Whether somebody else was ever named surely."""
        return any(client not in self.guilty and confidence >= SURE for client, confidence in self.named)


class Crowd:
    """A proxy with its clients, on a machine where nftguard runs."""

    def __init__(self, machine: Machine, image: Image, proxy: str) -> None:
        self._machine = machine
        self._image = image
        machine.write_file("/etc/nftguard.toml", '[[block]]\nname = "mail"\nports = [25]\n')
        machine.run(["systemctl", "restart", "nftguard"])
        self._link = self._give_addresses()
        self._command, self._port, self._places = self._microsocks() if proxy == "microsocks" else self._shadowsocks()

    def run(self, seed: int, together: int = 1) -> Outcome:
        """Start the proxy, have all clients talk, and one or some, always together, make attempts."""
        guilty = random.Random(seed).sample(range(CLIENTS), together)  # noqa: S311 - anybody will do
        before = len(self._records())
        unit = ["systemd-run", "--quiet", "--collect", f"--unit={_UNIT}", "--uid=nobody"]
        self._machine.run([*unit, *self._command])
        listening = ["ss", "-Hltn", f"sport = {self._port}"]
        wait_until(lambda: self._machine.run(listening).stdout, "the proxy to listen")
        talkers = self._machine.start_peer([sys.executable, str(_TALKERS), _ECHO, *self._places])
        try:
            _hear(talkers, "talking")
            assert talkers.stdin
            talkers.stdin.write(f"{','.join(map(str, guilty))} {ATTEMPTS} 25\n")
            talkers.stdin.flush()
            rate = float(_hear(talkers, ""))
            wait_until(lambda: len(self._records()) >= before + ATTEMPTS * together, "a record of each attempt")
        finally:
            talkers.kill()
            self._machine.run(["systemctl", "stop", _UNIT])
        named = [
            (str(record.get("NFTGUARD_CLIENT", "")), float(record.get("NFTGUARD_CLIENT_CONFIDENCE", 0)))
            for record in self._records()[before:]
        ]
        return Outcome(frozenset(_ADDRESSES[number] for number in guilty), tuple(named), rate)

    def _records(self) -> list[dict[str, Any]]:
        return self._machine.journal("_SYSTEMD_UNIT=nftguard.service", "NFTGUARD_EVENT=blocked")

    def _give_addresses(self) -> str:
        """Give each client its address; name the peer's end of the link."""
        listed = json.loads(self._machine.peer(["ip", "-json", "address", "show", "to", _PEER]).stdout)
        link = str(next(found["ifname"] for found in listed if found))
        commands = "".join(f"address replace {address}/24 dev {link}\n" for address in _ADDRESSES)
        self._machine.peer(["ip", "-batch", "-"], stdin=commands)
        return link

    def _microsocks(self) -> tuple[list[str], int, list[str]]:
        """Give the proxy's command and port, and where each client finds it."""
        places = [f"{address}@{_MACHINE}:1080" for address in _ADDRESSES]
        return ["microsocks", "-i", _MACHINE, "-p", "1080"], 1080, places

    def _shadowsocks(self) -> tuple[list[str], int, list[str]]:
        """Give the same, and start an ss-local for each client, with a user of its own whose route has his address."""
        shared = ["-s", _MACHINE, "-p", "8388", "-k", _PASSWORD, "-m", "chacha20-ietf-poly1305", "-t", "60"]
        places = []
        for user, address in enumerate(_ADDRESSES, _FIRST_UID):
            commands = (
                f"rule add uidrange {user}-{user} table {user}\n"
                f"route add 192.0.2.0/24 dev {self._link} src {address} table {user}\n"
            )
            self._machine.peer(["ip", "-batch", "-"], stdin=commands)
            inside = ["chroot", f"--userspec={user}:{user}", str(self._image.base)]
            self._machine.start_peer([*inside, "ss-local", "-b", "127.0.0.1", "-l", str(user), *shared])
            places.append(f"127.0.0.1@127.0.0.1:{user}")
        return ["ss-server", *shared], 8388, places


def _hear(talkers: subprocess.Popen[str], word: str) -> str:
    """Read the next line, which begins with the word."""
    assert talkers.stdout
    line = talkers.stdout.readline()
    if not line.startswith(word) or "Traceback" in line:
        talkers.kill()
        raise AssertionError(line + talkers.stdout.read())
    return line
