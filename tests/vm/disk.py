"""What a virtual machine is booted from: a Debian with its kernel and nftguard, as a file with an ext4 file system.

`python -m tests.vm.disk` builds and keeps them, as the first test that needs one does. The base takes a minute and a
network, and is kept for 20 days like that of tests/boot; what comes on top takes some seconds after each change.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builder import cache
from builder.system import BuildError, contained
from tests.boot import image as images
from tests.boot.suites import SUITES
from tests.vm.hypervisor import PORT, lacking

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.boot.suites import Suite

PACKAGES = ("linux-image-cloud-amd64", "rsyslog")
"""What a virtual machine has besides what a container has."""

_AGENT = Path(__file__).with_name("agent.py")
_FILES = {
    # Like the container's, but without a link of that name.
    "etc/systemd/network/20-link.network": """\
[Match]
Name=en*

[Network]
Address=192.0.2.2/24
Address=2001:db8::2/64
Gateway=192.0.2.1
Gateway=2001:db8::1
IPv6AcceptRA=no
""",
    "etc/systemd/system/nftguard-agent.service": f"""\
[Unit]
Description=The tests' way in
BindsTo=dev-virtio\\x2dports-{PORT}.device
After=dev-virtio\\x2dports-{PORT}.device

[Service]
Type=exec
ExecStart=/usr/bin/python3 -I /usr/local/lib/nftguard-agent /dev/virtio-ports/{PORT}
""",
    "etc/udev/rules.d/80-nftguard-agent.rules": f"""\
SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{PORT}", TAG+="systemd", ENV{{SYSTEMD_WANTS}}="nftguard-agent.service"
""",
}
# It writes to memory, and to the file at the end.
_BUILD = """
stage=$1 base=$2 archive=$3 file=$4
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
tar --extract --preserve-permissions --file="$archive" --directory=/run/upper
cp --recursive "$stage"/. /run/upper
mount -t overlay overlay -o "lowerdir=$base,upperdir=/run/upper,workdir=/run/work" /run/root
truncate --size=2G "$file"
mke2fs -q -F -t ext4 -d /run/root "$file"
umount /run/root
"""
_DAYS = 2
_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Disk:
    """One Debian with this checkout's nftguard, neither enabled nor started."""

    suite: Suite
    path: Path
    """A file that no machine changes. Who locks it keeps it from being removed."""
    kernel: Path


def prepare(suite: Suite, *, announce: Callable[[str], None] = lambda _: None) -> Disk:
    """Give the disk of a release; build what is not there, and tell `announce` before that takes long.

    Raises BuildError, and TimeoutError where another process takes too long to build the same.
    """
    image = images.prepare(suite, PACKAGES, announce=announce)
    kernels = list(image.base.glob("boot/vmlinuz-*"))
    if len(kernels) != 1:
        raise BuildError(f"{image.base} should have one kernel, and has {len(kernels)}")
    built = str(image.base.lstat().st_ctime_ns)  # the same name may come with another kernel, when it is built anew
    own = [_AGENT.read_bytes(), Path(__file__).read_bytes()]
    name = f"vm-{suite.name}-{cache.key([image.base.name, built, image.installed.name, *own])}.ext4"
    path = cache.folder() / name
    with cache.lock(f"vm-{suite.name}", timeout=_TIMEOUT):
        if not path.exists():
            announce(f"building a disk of {suite}, which takes some seconds")
            for old in cache.folder().glob(f"vm-{suite.name}-*.ext4"):
                cache.discard(old)  # half a gigabyte for each change of the checkout would be too much
            part = path.with_suffix(".part")
            with tempfile.TemporaryDirectory(prefix="nftguard-stage-") as stage:
                _lay_out(Path(stage))
                contained(["sh", "-ec", _BUILD, "sh", stage, image.base, image.installed, part], timeout=_TIMEOUT)
            part.rename(path)
            cache.discard_old("vm-*", _DAYS)
    return Disk(suite, path, kernels[0])


def _lay_out(stage: Path) -> None:
    texts = _FILES | {"usr/local/lib/nftguard-agent": _AGENT.read_text()}
    for name, text in texts.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    for folder in (stage, *(path for path in stage.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # whatever the umask is


def main() -> int:
    """Build every disk."""
    if reason := lacking():
        sys.stderr.write(f"{reason}\n")
        return 1
    for suite in SUITES:
        disk = prepare(suite, announce=_say)
        size = disk.path.stat().st_blocks * 512 >> 20
        _say(f"{suite}: {disk.path} ({size} MiB), {disk.kernel.name}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
