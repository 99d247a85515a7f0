"""What is handed out: the wheel, the sources, and that pipx can install the one and build the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nftguard

if TYPE_CHECKING:
    from tests.netns import Namespace

CHECKOUT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CONFIG = CHECKOUT / "conf/nftguard.toml"
STEM = f"nftguard-{nftguard.__version__}"
FOLDERS = ("bench", "builder", "completions", "conf", "contrib", "debian", "docs", "nftguard", "systemd", "tests")
FILES = (".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "PKG-INFO", "README.md", "pyproject.toml")
# What tools leave in a checkout, as .gitignore has it.
LITTER = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "build", "dist"}


def run(*argv: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}:\n{done.stdout}{done.stderr}"
    return done  # type: ignore[no-any-return]


def files(folder: str) -> set[str]:
    found = (path.relative_to(CHECKOUT) for path in (CHECKOUT / folder).rglob("*") if path.is_file())
    return {str(path) for path in found if LITTER.isdisjoint(path.parts)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sources of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(BIN / "hatchling", "build", "-d", folder, cwd=CHECKOUT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"{STEM}-py3-none-any.whl"


def test_the_wheel_is_the_package_with_its_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        mode = archive.getinfo("nftguard/boot.sh").external_attr >> 16
    about = {f"{STEM}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == files("nftguard") | about | {f"{STEM}.dist-info/licenses/LICENSE"}
    assert mode & 0o777 == 0o755


def test_the_sources_are_all_that_a_package_is_made_of_and_nothing_else(dist: Path) -> None:
    with tarfile.open(dist / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    expected = {name for folder in FOLDERS for name in files(folder)}
    assert names == expected | set(FILES)


def test_the_sources_build_the_very_same_wheel(dist: Path, wheel: Path, tmp_path: Path) -> None:
    run("tar", "-xf", dist / f"{STEM}.tar.gz", "-C", tmp_path)
    run(BIN / "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=tmp_path / STEM)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_an_index_would_take_both(dist: Path, wheel: Path) -> None:
    run(BIN / "twine", "check", "--strict", wheel, dist / f"{STEM}.tar.gz")


def test_pipx_installs_the_wheel_and_without_the_systems_packages_it_says_what_is_missing(
    wheel: Path, netns: Namespace, tmp_path: Path
) -> None:
    names = {f"PIPX_{name.upper()}_DIR": str(tmp_path / name) for name in ("bin", "man")}
    environment = os.environ | names | {"PIPX_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    install: list[str | Path] = [BIN / "pipx", "install", "--python", "/usr/bin/python3"]
    run(*install, "--system-site-packages", wheel, env=environment)
    command = str(tmp_path / "bin/nftguard")
    assert netns.run(command, "--version").stdout == f"nftguard, version {nftguard.__version__}\n"
    assert netns.run(command, "--config", str(CONFIG), "check").stdout.startswith("valid, and the kernel would take it")
    assert "create table inet nftguard" in netns.run(command, "--config", str(CONFIG), "plan").stdout

    run(*install, "--suffix=-alone", wheel, env=environment)
    done = netns.run(f"{command}-alone", "--config", str(CONFIG), "check", check=False)
    assert done.returncode == 69
    assert "install the package python3-nftables" in done.stderr
    assert "--system-site-packages" in done.stderr
