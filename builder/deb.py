"""The packages of a checkout: `python -m builder.deb DIST` builds both, each in its release, and has lintian look."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from builder import cache, wheels
from builder.system import BuildError, contained, debian

CHECKOUT = Path(__file__).parents[1]
SOURCES = (
    *("nftguard", "completions", "conf", "contrib", "debian", "docs", "systemd"),
    *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
)
"""What a package is made from."""

_DAYS = 20  # systemd-tmpfiles removes what is 30 days old from /var/tmp, file by file
_TIMEOUT = 900.0
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*")
# The system stays as it is: what is written goes to memory.
_BUILD = """
root=$1 stage=$2 place=$3 backport=$4 lint=$5
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
mount -t overlay overlay -o "lowerdir=$root,upperdir=/run/upper,workdir=/run/work" /run/root
mount -t proc proc /run/root/proc
mkdir -p "/run/root$place"
cp -rL "$stage/source" "/run/root$place/nftguard"
cat >/run/root/run/build <<'END'
set -e
cd "$1/nftguard"
test "$2" = no || debian/backport
# What it needs is there, but for build-essential: nothing is compiled.
dpkg-buildpackage --no-sign --build=binary --no-check-builddeps
cd ..
test "$3" = no || lintian --allow-root --fail-on error,warning ./*.changes
END
chroot /run/root sh /run/build "$place" "$backport" "$lint"
cp "/run/root$place"/*.deb "$stage"
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian that packages are built for."""

    name: str
    backport: bool
    """Whether its libraries are too old, so that the package carries its own."""


BOOKWORM = Release("bookworm", backport=True)
TRIXIE = Release("trixie", backport=False)
RELEASES = (BOOKWORM, TRIXIE)


def system(release: Release) -> Path:
    """Give the folder with all that a build needs, made now if it is not there. Raises BuildError and TimeoutError."""
    packages = [*_wanted((CHECKOUT / "debian/control").read_text()), "lintian"]
    if release.backport:
        packages.append("python3-pip")
    return cache.kept(
        f"build-{release.name}",
        cache.key([*packages, *_LEFT_OUT]),
        _DAYS,
        lambda root: debian(release.name, packages, root, left_out=_LEFT_OUT),
    )


def files() -> dict[Path, bytes]:
    """Read every file that a package is made from, once: somebody may be at work in the checkout."""
    found = [path for source in SOURCES for path in ((CHECKOUT / source), *(CHECKOUT / source).rglob("*"))]
    return {
        path.relative_to(CHECKOUT): path.read_bytes()
        for path in sorted(found)
        if path.is_file() and "__pycache__" not in path.parts
    }


def write(sources: dict[Path, bytes], folder: Path) -> None:
    """Write what `files` has read."""
    for name, data in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if data.startswith(b"#!") else 0o644)


def build(
    release: Release,
    sources: dict[Path, bytes],
    target: Path,
    *,
    place: str = "/build",
    lint: bool = False,
) -> Path:
    """Build a release's package into a folder, and return where it is. Raises BuildError and TimeoutError.

    `place` is where in the system it is built; the bytes are the same wherever.
    """
    root = system(release)
    with tempfile.TemporaryDirectory(prefix="nftguard-build-") as folder:
        stage = Path(folder)
        write(sources, stage / "source")
        if release.backport:
            requirements = sources[Path("debian/requirements.txt")]
            (stage / "source/debian/wheels").symlink_to(wheels.folder(requirements, _python(root)))
        flags = ("yes" if flag else "no" for flag in (release.backport, lint))
        with cache.held(root):
            contained(["sh", "-ec", _BUILD, "sh", root, stage, place, *flags], timeout=_TIMEOUT)
        [built] = stage.glob("*.deb")
        part = target / f".{built.name}.{os.getpid()}"
        part.write_bytes(built.read_bytes())
        return part.rename(target / built.name)


def _wanted(control: str) -> list[str]:
    """List the packages that a build needs, as debian/control says."""
    [field] = re.findall(r"^Build-Depends:((?:.*\n\s)*.*)", control, re.MULTILINE)
    names = [re.sub(r"\(.*\)", "", name).strip() for name in field.split(",")]
    return sorted("debhelper" if name == "debhelper-compat" else name for name in names)


def _python(root: Path) -> str:
    """Name the version of a system's python, as 3.11."""
    return (root / "usr/bin/python3").readlink().name.removeprefix("python")


def main() -> int:
    """Build every package, side by side."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    sources = files()
    sys.stdout.write("building for " + " and ".join(release.name for release in RELEASES))
    sys.stdout.write("; the first time this takes a minute or two\n")
    sys.stdout.flush()
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(build, release, sources, target, lint=True) for release in RELEASES]
    for run in runs:
        if error := run.exception():
            if not isinstance(error, BuildError | OSError):
                raise error
            sys.stderr.write(f"{error}\n")
            return 1
        path = run.result()
        sys.stdout.write(f"{path}  {path.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
