"""A book of allowances on a computer whose clocks the test moves; and what is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nftguard.allowed.book import Allowances, Clocks
from nftguard.allowed.grant import Selection, read, select
from nftguard.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.allowed.grant import Grant

MAIL = '[[block]]\nname = "mail"\nports = [25, 587]\n[[block]]\nname = "wide"\nports = ["500-600"]\n'
POSTFIX, MALLORY = 4711, 4712
USER = {"ports": "587", "hook": "output", "protocol": "tcp", "user": "postfix", "seconds": 1800}
HOST = Host(users={"postfix": POSTFIX}, groups={"mail": 8})


def asked(**changes: Any) -> Grant:
    return read({name: value for name, value in (USER | changes).items() if value is not None}, "root")


def selected(**arguments: Any) -> Selection:
    return select(arguments)


class World:
    """Clocks that the test moves by hand, and the computer that they belong to."""

    def __init__(self) -> None:
        self.boots = 1
        self.elapsed = 50.0
        self.wall = 1.8e9
        self.complaints: list[Path] = []

    def book(self) -> Allowances:
        """What a new process starts with."""
        clock = Clocks(f"boot {self.boots}", lambda: self.elapsed, lambda: self.wall, lambda: self.elapsed + 7)
        return Allowances(lambda path, _: self.complaints.append(path), clock)

    def wait(self, seconds: float) -> None:
        self.elapsed += seconds
        self.wall += seconds

    def reboot(self, off: float = 30.0) -> Allowances:
        self.boots += 1
        self.elapsed = 5.0
        self.wall += off
        return self.book()


def left(book: Allowances) -> dict[int, int]:
    return {one.port: one.left for one in book.current()}
