"""Control groups of a test's own: made and removed by it."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard.who import cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@contextlib.contextmanager
def group() -> Iterator[Path]:
    """Make a control group, as for a slice of systemd's; at the end, kill what is in it and below, and remove it."""
    path = cgroups.mounted() / f"nftguard-test-{os.getpid()}-{next(_numbers)}.slice"
    path.mkdir()
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        end = time.monotonic() + 10
        while "populated 1" in (path / "cgroup.events").read_text() and time.monotonic() < end:
            time.sleep(0.005)
        for folder, _, _ in os.walk(path, topdown=False):
            Path(folder).rmdir()


def joining(path: Path, *argv: str) -> list[str]:
    """Give the command that joins the group and then becomes `argv`."""
    return ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(path), *argv]
