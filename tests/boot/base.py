"""The base of a machine: a Debian as its installer would leave it, built once with mmdebstrap."""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.boot import cache
from tests.boot.host import BuildError, contained, mirror, transport
from tests.boot.suites import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.boot.suites import Suite

CHECKOUT = Path(__file__).parents[2]
VENV = "usr/lib/nftguard/venv"
"""Where nftguard and its libraries are on a release whose own are too old."""

_DAYS = 20  # systemd-tmpfiles removes what is 30 days old from /var/tmp, file by file
_TIMEOUT = 900.0
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
}
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")


def prepare(suite: Suite, packages: tuple[str, ...], announce: Callable[[str], None]) -> Path:
    """Give the folder with the base, built now if it is not there. Raises BuildError and TimeoutError."""
    wanted = sorted({*PACKAGES, *suite.packages, *packages})
    libraries = _libraries() if suite.venv else []
    key = cache.key([*wanted, "", *libraries, "", Path(__file__).read_bytes()])
    name = f"base-{suite.name}-{key}"
    path = cache.folder() / name
    with cache.lock(f"base-{suite.name}", timeout=_TIMEOUT):
        if not cache.fresh(path, _DAYS):
            announce(f"building a base of {suite}, which takes about a minute")
            part = cache.folder() / f"{name}.part"
            cache.discard(part)
            _debian(suite, wanted, part)
            if libraries:
                _venv(part, libraries)
            _finish(part)
            if not cache.discard(path):
                raise BuildError(f"{path} is too old, and a machine still runs on it")
            part.rename(path)
            cache.discard_old("base-*", _DAYS)
    return path


def _libraries() -> list[str]:
    """List what nftguard needs from PyPI."""
    return sorted(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"])


def _debian(suite: Suite, packages: list[str], root: Path) -> None:
    apt_options = ['APT::Install-Recommends "false"', *transport()]
    dpkg_options = ["force-unsafe-io", *(f"path-exclude={pattern}" for pattern in _LEFT_OUT)]
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in apt_options] + [f"--dpkgopt={option}" for option in dpkg_options]
    contained([*command, suite.name, root, mirror()], timeout=_TIMEOUT)


def _venv(root: Path, libraries: list[str]) -> None:
    """Make the virtual environment. This machine's pip fills it: only here pip knows its way to PyPI."""
    _chroot(root, "python3", "-m", "venv", "--system-site-packages", "--without-pip", f"/{VENV}")
    site = next((root / VENV).glob("lib/python3.*/site-packages"))
    version = site.parent.name.removeprefix("python")
    tags = [f"manylinux_2_{minor}_{platform.machine()}" for minor in range(17, 37)]  # Debian 12 has glibc 2.36
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--target", str(site), "--implementation=cp", f"--python-version={version}"]
    command += [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{platform.machine()}")]
    pip = subprocess.run([*command, *libraries], capture_output=True, text=True, timeout=300, check=False)
    if pip.returncode:
        raise BuildError(f"pip could not install {' '.join(libraries)}:\n{pip.stderr[-4000:]}")
    _chroot(root, "python3", "-m", "compileall", "-q", f"/{VENV}/lib")


def _finish(root: Path) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.unlink(missing_ok=True)  # a link would lead out of the base
        path.write_text(text)
    _chroot(root, "systemctl", "--quiet", "enable", "systemd-networkd.service")
    # What a package's timer might do to a machine in the midst of a test.
    _chroot(root, "systemctl", "--quiet", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")
    for folder in ("etc", "var"):  # else systemd takes the first boot for one after an upgrade of /usr
        (root / folder / ".updated").touch()


def _chroot(root: Path, *argv: str) -> None:
    contained(["chroot", root, *argv], timeout=120)
