"""nftguard's package of this checkout, built and installed: what comes on top of a base, as a tar archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builder import cache, deb
from builder.system import contained

if TYPE_CHECKING:
    from tests.boot.suites import Suite

# As on a host, but that nothing runs. It is written to memory, and to the archive at the end.
_INSTALL = """
package=$1 base=$2 archive=$3
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
mount -t overlay overlay -o "lowerdir=$base,upperdir=/run/upper,workdir=/run/work" /run/root
mkdir -p /run/root/root
cp "$package" /run/root/root/nftguard.deb
tar --create --directory=/run/upper --file="$archive.bare" .
export DEBIAN_FRONTEND=noninteractive
chroot /run/root apt-get --quiet --yes install /root/nftguard.deb
rm /run/root/root/nftguard.deb
umount /run/root
tar --create --directory=/run/upper --file="$archive" .
"""
_DAYS = 2
_TIMEOUT = 900.0


def package(suite: Suite) -> Path:
    """Give the package of the checkout as it is now, built if it is not there. Raises BuildError and TimeoutError."""
    sources = deb.files()
    content = [part for file, data in sources.items() for part in (str(file), data)]

    def make(folder: Path) -> None:
        folder.mkdir()
        deb.build(suite.packaged, sources, folder)

    folder = cache.kept(f"nftguard-{suite.name}", cache.key([*content, Path(deb.__file__).read_bytes()]), _DAYS, make)
    [found] = folder.glob("*.deb")
    return found


def prepare(suite: Suite, base: Path) -> tuple[Path, Path]:
    """Give two archives: the package installed, and the package as /root/nftguard.deb with nothing installed.

    Both are made now if they are not there. Raises BuildError and TimeoutError.
    """
    built = package(suite)
    path = built.parent / f"{built.parent.name}-{base.name}-{cache.key([Path(__file__).read_bytes()])}.tar"
    bare = Path(f"{path}.bare")
    with cache.lock(f"nftguard-{suite.name}", timeout=_TIMEOUT):
        if not path.exists():
            part = path.with_suffix(".part")
            contained(["sh", "-ec", _INSTALL, "sh", built, base, part], timeout=_TIMEOUT)
            Path(f"{part}.bare").rename(bare)
            part.rename(path)
    return path, bare
