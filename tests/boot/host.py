"""What the harness asks of the machine that the tests run on."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

from builder.system import private

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
