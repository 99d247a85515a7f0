"""nftguard as it lies on a host that has it installed: the files that come on top of a base, as a tar archive."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.boot import cache
from tests.boot.base import CHECKOUT, VENV
from tests.boot.host import BuildError, contained

if TYPE_CHECKING:
    from tests.boot.suites import Suite

_SOURCES = ("nftguard", "conf", "systemd")
_PLACES = {  # where a file of systemd/ goes, by its suffix
    **dict.fromkeys((".path", ".service", ".slice", ".socket", ".target", ".timer"), "usr/lib/systemd/system/{name}"),
    ".conf": "usr/share/doc/nftguard/examples/{name}",
    ".catalog": "usr/lib/systemd/catalog/{name}",
    ".modules": "usr/lib/modules-load.d/{stem}.conf",
    ".preset": "usr/lib/systemd/system-preset/{name}",
    ".sysusers": "usr/lib/sysusers.d/{stem}.conf",
    ".tmpfiles": "usr/lib/tmpfiles.d/{stem}.conf",
}
_SCRIPT = """\
#!{python}
import sys
from nftguard.__main__ import main
sys.exit(main())
"""
# What a package's postinst would do, with the base below. It writes to memory, and to the archive at the end.
_INSTALL = """
stage=$1 base=$2 package=$3 archive=$4
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
mount -t overlay overlay -o "lowerdir=$base,upperdir=/run/upper,workdir=/run/work" /run/root
cd "$stage"
find . ! -type d -print0 | tar --create --null --files-from=- | tar --extract --directory=/run/root
chroot /run/root python3 -m compileall -q "/$package"
chroot /run/root systemd-sysusers
if test -e /run/root/usr/lib/tmpfiles.d/nftguard.conf; then
    chroot /run/root systemd-tmpfiles --create nftguard.conf
fi
umount /run/root
tar --create --directory=/run/upper --file="$archive" .
"""
_DAYS = 2
_TIMEOUT = 120.0


def prepare(suite: Suite, base: Path) -> Path:
    """Give the archive for the checkout as it is now, built if it is not there. Raises BuildError and TimeoutError."""
    files = _files()
    content = [part for file, data in files.items() for part in (str(file), data)]
    key = cache.key([base.name, (CHECKOUT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), *content])
    name = f"nftguard-{suite.name}-{key}.tar"
    path = cache.folder() / name
    with cache.lock(f"nftguard-{suite.name}", timeout=_TIMEOUT):
        if not path.exists():
            part = path.with_suffix(".part")
            with tempfile.TemporaryDirectory(prefix="nftguard-stage-") as stage:
                package = _lay_out(Path(stage), files, suite, base)
                contained(["sh", "-ec", _INSTALL, "sh", stage, base, package, part], timeout=_TIMEOUT)
            part.rename(path)
            cache.discard_old("nftguard-*", _DAYS)
    return path


def _files() -> dict[Path, bytes]:
    """Read every file that is installed, once: somebody may be at work in the checkout."""
    paths = sorted(path for source in _SOURCES for path in (CHECKOUT / source).rglob("*"))
    return {
        path.relative_to(CHECKOUT): path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def _lay_out(stage: Path, files: dict[Path, bytes], suite: Suite, base: Path) -> str:
    """Lay every file where it belongs, and return where the package is."""
    stage.chmod(0o755)
    if suite.venv:
        [site] = (base / VENV).glob("lib/python3.*/site-packages")
        package = str(site.relative_to(base) / "nftguard")
        command = stage / VENV / "bin/nftguard"
        python = f"/{VENV}/bin/python3"
        link = stage / "usr/bin/nftguard"
        link.parent.mkdir(parents=True)
        link.symlink_to(f"/{VENV}/bin/nftguard")
    else:
        package = "usr/lib/python3/dist-packages/nftguard"
        command = stage / "usr/bin/nftguard"
        python = "/usr/bin/python3"
    _write(command, _SCRIPT.format(python=python).encode(), 0o755)
    for file, data in files.items():
        source, inner = file.parts[0], Path(*file.parts[1:])
        match source:
            case "nftguard":
                place = f"{package}/{inner}"
            case "conf":
                place = f"etc/{inner}"
            case _:
                place = _place_of_unit(inner)
        _write(stage / place, data, 0o755 if inner.suffix == ".sh" else 0o644)
    boot = stage / "usr/lib/nftguard/boot"
    boot.parent.mkdir(parents=True, exist_ok=True)
    boot.symlink_to(f"/{package}/boot.sh")
    return package


def _place_of_unit(file: Path) -> str:
    """Say where a file of systemd/ goes; one in a folder NAME.service.d is a drop-in."""
    if len(file.parts) == 2 and file.parts[0].endswith(".d"):
        return f"usr/lib/systemd/system/{file}"
    if len(file.parts) > 1 or file.suffix not in _PLACES:
        raise BuildError(f"{Path(__file__).name} does not know where systemd/{file} is installed; say so there")
    return _PLACES[file.suffix].format(name=file.name, stem=file.stem)


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
