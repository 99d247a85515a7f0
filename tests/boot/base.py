"""The base of a machine: a Debian as its installer would leave it, built once with mmdebstrap.

No network is in reach of a machine, but a repository of its own is: all that nftguard's package needs, and
`suites.AT_HAND`, with what those need.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from builder import cache, deb
from builder.system import chroot, debian
from tests.boot.suites import AT_HAND, NEEDS, PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.boot.suites import Suite

CHECKOUT = deb.CHECKOUT

_DAYS = 20  # systemd-tmpfiles removes what is 30 days old from /var/tmp, file by file
_MACHINE_ID = "6e667467756172640000000000000001"
_FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n::1 localhost machine\n",
    "etc/machine-id": f"{_MACHINE_ID}\n",  # without one, each boot would be a first boot
    "etc/systemd/network/10-peer.network": """\
[Match]
Name=host0

[Network]
Address=192.0.2.2/24
Gateway=192.0.2.1
Gateway=2001:db8::1
IPv6AcceptRA=no

[Address]
Address=2001:db8::2/64
DuplicateAddressDetection=none
""",
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/apt ./\n",
    # In the place of what the build was told: a package brings its manual pages, and apt what is recommended.
    "etc/apt/apt.conf.d/99mmdebstrap": "",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap": "force-unsafe-io\n",
}
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_FETCH = """\
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --quiet --yes --download-only install {packages}
mkdir "$1/srv/apt"
mv "$1"/var/cache/apt/archives/*.deb "$1/srv/apt/"
"""


def prepare(suite: Suite, packages: tuple[str, ...], announce: Callable[[str], None]) -> Path:
    """Give the folder with the base, built now if it is not there. Raises BuildError and TimeoutError."""
    wanted = sorted({*PACKAGES, *packages})
    at_hand = sorted({*NEEDS, *suite.needs, *AT_HAND})
    key = cache.key([*wanted, "", *at_hand, "", Path(__file__).read_bytes()])

    def make(root: Path) -> None:
        announce(f"building a base of {suite}, which takes about a minute")
        debian(suite.name, wanted, root, left_out=_LEFT_OUT, hooks=[_FETCH.format(packages=" ".join(at_hand))])
        _finish(root)

    return cache.kept(f"base-{suite.name}", key, _DAYS, make)


def _finish(root: Path) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.unlink(missing_ok=True)  # a link would lead out of the base
        path.write_text(text)
    (root / "srv/apt/Packages").write_text(_index(root / "srv/apt"))
    chroot(root, "apt-get", "--quiet", "update")
    chroot(root, "systemctl", "--quiet", "enable", "systemd-networkd.service")
    chroot(root, "systemctl", "--quiet", "disable", "microsocks.service", "shadowsocks-libev.service")
    # What a package's timer might do to a machine in the midst of a test.
    chroot(root, "systemctl", "--quiet", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")
    for folder in ("etc", "var"):  # else systemd takes the first boot for one after an upgrade of /usr
        (root / folder / ".updated").touch()


def _index(folder: Path) -> str:
    """Describe the packages in a folder, as apt reads it."""
    entries = []
    for path in sorted(folder.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, text=True, timeout=60, check=True)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        entries.append(f"{fields.stdout}Filename: ./{path.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    return "\n".join(entries)
