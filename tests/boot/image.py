"""What a machine is booted from: a Debian with nftguard installed. `python -m tests.boot.image` builds and keeps them.

The base, and the system that the package is built in, take a minute and a network; they are built again when what
belongs in them changes, and after 20 days. The package is built again, and installed, whenever the checkout changes.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder import deb
from tests.boot import base, host, installed
from tests.boot.suites import SUITES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.boot.suites import Suite


@dataclass(frozen=True, slots=True)
class Image:
    """One Debian with this checkout's nftguard, neither enabled nor started; or with its package at hand."""

    suite: Suite
    base: Path
    """A folder with the whole file system; no machine changes it."""
    installed: Path
    """A tar archive with what comes on top."""


def prepare(suite: Suite, packages: tuple[str, ...] = (), *, announce: Callable[[str], None] = lambda _: None) -> Image:
    """Give the image of a release, with more of its packages if need be; build what is not there.

    `announce` is told before that takes long.

    Raises BuildError, and TimeoutError where another process takes too long to build the same.
    """
    return _both(suite, packages, announce)[0]


def bare(suite: Suite, packages: tuple[str, ...] = (), *, announce: Callable[[str], None] = lambda _: None) -> Image:
    """Give the image of a release without nftguard, but with its package as /root/nftguard.deb. Like `prepare`.

    All that it needs is in the machine's own repository: `apt install ./nftguard.deb` works without a network.
    """
    return _both(suite, packages, announce)[1]


def _both(suite: Suite, packages: tuple[str, ...], announce: Callable[[str], None]) -> tuple[Image, Image]:
    mask = os.umask(0o022)  # a stricter one would show in the image
    try:
        with ThreadPoolExecutor() as pool:
            builder = pool.submit(deb.system, suite.packaged)
            folder = base.prepare(suite, packages, announce)
            builder.result()
        archives = installed.prepare(suite, folder)
    finally:
        os.umask(mask)
    with_it, without = (Image(suite, folder, archive) for archive in archives)
    return with_it, without


def main() -> int:
    """Build every image."""
    if reason := host.lacking():
        sys.stderr.write(f"{reason}\n")
        return 1
    for suite in SUITES:
        image = prepare(suite, announce=_say)
        _say(f"{suite}: {image.base}, {image.installed}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
