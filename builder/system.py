"""A Debian in a folder, made with mmdebstrap, and commands that run in it or beside it."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MIRROR = "NFTGUARD_BOOT_MIRROR"
"""The environment variable that names a Debian mirror, where apt knows none."""

_TIMEOUT = 900.0


class BuildError(Exception):
    """A system or a package could not be built."""


def debian(
    release: str, packages: Iterable[str], root: Path, *, left_out: Iterable[str] = (), hooks: Iterable[str] = ()
) -> None:
    """Make a folder with Debian's essential packages, apt and these, without what they recommend. Raises BuildError.

    `left_out` are patterns of paths that are not unpacked, `hooks` shell commands for mmdebstrap to run at the end.
    """
    apt_options = ['APT::Install-Recommends "false"', *_transport()]
    dpkg_options = ["force-unsafe-io", *(f"path-exclude={pattern}" for pattern in left_out)]
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in apt_options] + [f"--dpkgopt={option}" for option in dpkg_options]
    command += [f"--customize-hook={hook}" for hook in hooks]
    contained([*command, release, root, _mirror()], timeout=_TIMEOUT)


def chroot(root: Path, *argv: str) -> None:
    """Run a command in a system. Raises BuildError."""
    contained(["chroot", root, *argv], timeout=120)


def contained(argv: Sequence[str | os.PathLike[str]], *, timeout: float) -> str:
    """Run a command with mounts and processes of its own, none of which outlives it, and give its output.

    Raises BuildError.
    """
    # The commands are the image's own in part: this system's settings for Python are not for them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"LC_ALL": "C.UTF-8", "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    command = [*private("--pid", "--fork", "--kill-child", "--mount-proc"), *map(str, argv)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"not done after {timeout:g} s: {' '.join(command)}") from None
    if done.returncode:
        raise BuildError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-6000:]}")
    return done.stdout


def private(*options: str) -> list[str]:
    """Begin a command line that runs with mounts of its own, which end with it."""
    return ["unshare", "--mount", "--propagation", "private", *options]


def _mirror() -> str:
    """Name the Debian mirror that this machine's own apt uses. Raises BuildError."""
    if named := os.environ.get(MIRROR):
        return named
    uris = subprocess.run(
        ["apt-get", "update", "--print-uris"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    if found := re.search(r"'(\S+/debian)/+dists/", uris):
        return found[1]
    raise BuildError(f"apt here has no Debian mirror; name one in {MIRROR}")


def _transport() -> list[str]:
    """Give the settings by which this machine's apt reaches and trusts its mirror: proxies, certificates, dates."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=60, check=True)
    wanted = re.compile(r"Acquire::(https?::|Check-)\S+ \".+\";")
    return [line for line in dump.stdout.splitlines() if wanted.fullmatch(line)]
