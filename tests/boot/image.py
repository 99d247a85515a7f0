"""What a machine is booted from: a Debian with nftguard installed. `python -m tests.boot.image` builds and keeps them.

The base takes half a minute and a network; it is built again when what belongs in it changes, and after 20 days.
nftguard on top takes a second or two; it is built again whenever the checkout changes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.boot import base, host, installed
from tests.boot.suites import SUITES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.boot.suites import Suite


@dataclass(frozen=True, slots=True)
class Image:
    """One Debian with this checkout's nftguard, neither enabled nor started."""

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
    mask = os.umask(0o022)  # a stricter one would show in the image
    try:
        folder = base.prepare(suite, packages, announce)
        return Image(suite, folder, installed.prepare(suite, folder))
    finally:
        os.umask(mask)


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
