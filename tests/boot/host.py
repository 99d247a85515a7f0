"""What the harness asks of the machine that the tests run on."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIRROR = "NFTGUARD_BOOT_MIRROR"
"""The environment variable that names a Debian mirror, where apt knows none."""

_TOOLS = {  # to the Debian package that has it
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "apt-get": "apt",
    **dict.fromkeys(("mount", "umount"), "mount"),
    **dict.fromkeys(("nsenter", "setpriv", "unshare"), "util-linux"),
}
# What a machine does before it boots, tried out where nothing of it stays. The kernel has cgroup.kill since 5.14.
_PROBE = """
mount -t tmpfs tmpfs /run
mkdir /run/lower /run/upper /run/work /run/root
mount -t overlay overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work /run/root
umount -R /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cgroup=/sys/fs/cgroup/nftguard-boot-probe-$$
mkdir $cgroup
test -w $cgroup/cgroup.kill || { rmdir $cgroup; echo 'this kernel has no cgroup.kill' >&2; exit 1; }
rmdir $cgroup
"""


@functools.cache
def lacking() -> str | None:
    """Say what keeps machines from being booted here; None if nothing does."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    if missing := sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool)}):
        return f"booting a machine needs the packages {' '.join(missing)}"
    probe = subprocess.run(
        [*private("--net"), "sh", "-ec", _PROBE], capture_output=True, text=True, timeout=30, check=False
    )
    if probe.returncode:
        return f"this system does not let a machine be booted: {probe.stderr.strip()}"
    return None


def private(*options: str) -> list[str]:
    """Begin a command line that runs with mounts of its own, which end with it."""
    return ["unshare", "--mount", "--propagation", "private", *options]


def contained(argv: Sequence[str | os.PathLike[str]], *, timeout: float) -> None:
    """Run a command with mounts and processes of its own, none of which outlives it. Raises BuildError."""
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
        raise BuildError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-4000:]}")


def mirror() -> str:
    """Name the Debian mirror that this machine's own apt uses. Raises BuildError."""
    if named := os.environ.get(MIRROR):
        return named
    uris = subprocess.run(
        ["apt-get", "update", "--print-uris"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    if found := re.search(r"'(\S+/debian)/+dists/", uris):
        return found[1]
    raise BuildError(f"apt here has no Debian mirror; name one in {MIRROR}")


def transport() -> list[str]:
    """Give the settings by which this machine's apt reaches and trusts its mirror: proxies, certificates, dates."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=60, check=True)
    wanted = re.compile(r"Acquire::(https?::|Check-)\S+ \".+\";")
    return [line for line in dump.stdout.splitlines() if wanted.fullmatch(line)]


class BuildError(Exception):
    """An image could not be built."""
