"""The RPM package: built here with what Fedora's macros mean (fedora.macros), and looked into."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import nftguard
from tests.test_dist import BIN, CHECKOUT, STEM, files, run

if TYPE_CHECKING:
    from collections.abc import Iterator

SITE = "/usr/lib/python3.13/site-packages"
UNITS = "/usr/lib/systemd/system"


class Entry(NamedTuple):
    mode: str
    owner: str
    link: str


def build(folder: Path, site: str = SITE) -> Path:
    """Build the package from the sources that are handed out, and give its path. Nothing is left in the checkout."""
    run(BIN / "hatchling", "build", "-t", "sdist", "-d", folder, cwd=CHECKOUT)
    run("tar", "-xf", folder / f"{STEM}.tar.gz", "-C", folder)
    sources = folder / STEM
    (sources / ".venv").symlink_to(Path(sys.executable).parents[1])
    macros = f"--nodeps --load={CHECKOUT}/tests/fedora.macros --define 'python3_sitelib {site}'"
    macros += f" --define 'venv {sources}/.venv'"
    # "-o": the virtual environment is as it is; it belongs to the checkout.
    run("make", "-o", ".venv/.test", "-C", sources, "rpm", f"RPMFLAGS={macros}")
    return sources / "dist" / f"{STEM}-1.noarch.rpm"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("rpm"))


def ask(package: Path, *options: str) -> str:
    return run("rpm", "--query", "--package", *options, package).stdout


@pytest.fixture(scope="module")
def entries(package: Path) -> dict[str, Entry]:
    """What the package installs: path to mode, owner, and where a link leads."""
    lines = ask(
        package, "--queryformat", "[%{FILENAMES}|%{FILEMODES:perms}|%{FILEUSERNAME}:%{FILEGROUPNAME}|%{FILELINKTOS}\n]"
    )
    rows = (line.split("|") for line in lines.splitlines())
    return {row[0]: Entry(*row[1:]) for row in rows}


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("tar", "-xf", archive(package), "-C", folder)
    return folder


def archive(package: Path) -> Path:
    """Give the package's files as a tar archive."""
    run("rpm2archive", package)
    return package.with_name(f"{package.name}.tgz")


def scripts(package: Path) -> Iterator[tuple[str, str]]:
    """Give what RPM runs after an installation, before a removal and after it; see `rpm --querytags`."""
    for tag in ("POSTIN", "PREUN", "POSTUN"):
        yield tag, ask(package, "--queryformat", f"%{{{tag}}}")


def test_it_has_every_file_of_the_package_and_of_what_is_installed_besides(
    package: Path, entries: dict[str, Entry], tmp_path: Path
) -> None:
    run(
        "make",
        "-C",
        package.parents[1],
        "install-data",
        f"DESTDIR={tmp_path}",
        "prefix=/usr",
        f"package={SITE}/nftguard",
    )
    besides = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if not path.is_dir()}
    wanted = besides | {f"{SITE}/{name}" for name in files("nftguard")} | {"/usr/bin/nftguard"}
    assert wanted - entries.keys() == set()
    ours = ("/usr/lib/nftguard/python", f"{SITE}/{STEM}.dist-info")
    rest = {path for path, entry in entries.items() if not entry.mode.startswith("d")} - wanted
    assert {path for path in rest if not path.startswith(ours)} == set()


def test_modes_and_owners_are_those_of_a_package_without_privilege(entries: dict[str, Entry]) -> None:
    assert {entry.owner for entry in entries.values()} == {"root:root"}
    runnable = {path for path, entry in entries.items() if entry.mode == "-rwxr-xr-x"}
    assert runnable == {"/usr/bin/nftguard", f"{SITE}/nftguard/boot.sh"}
    assert {entry.mode for entry in entries.values()} == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}
    assert entries["/usr/lib/nftguard/boot"].link == f"{SITE}/nftguard/boot.sh"


def test_every_program_of_a_unit_is_in_it_or_the_administrators(entries: dict[str, Entry], unpacked: Path) -> None:
    commands = [
        match[1].split()
        for unit in (unpacked / UNITS[1:]).glob("*.service")
        for match in re.finditer(r"^Exec\w+=[-+!@:]*(.+)$", unit.read_text(), re.MULTILINE)
    ]
    assert commands
    for program, *arguments in commands:
        wanted = arguments[0] if program == "/usr/bin/sh" else program
        assert wanted in entries or wanted.startswith("/etc/nftguard.d/"), program


def test_only_the_configuration_is_the_administrators_and_is_not_replaced(package: Path) -> None:
    flags = ask(package, "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]").splitlines()
    assert [line for line in flags if "c" in line.split(" ")[0]] == ["cn /etc/nftguard.toml"]


def test_no_file_knows_where_it_was_built(package: Path, unpacked: Path) -> None:
    places = (str(package.parents[1]).encode(), str(CHECKOUT).encode())
    leaks = [path for path in unpacked.rglob("*") if path.is_file() and any(p in path.read_bytes() for p in places)]
    assert leaks == []


def test_it_requires_what_is_not_on_an_index_and_carries_what_fedora_lacks(package: Path, unpacked: Path) -> None:
    required = ask(package, "--requires")
    assert {"nftables", "python3-nftables", "python3-systemd"} <= set(required.split())
    for name in ("click", "dnspython", "pydantic"):
        assert f"python3.13dist({name}) >= " in required
    assert "structlog" not in required
    [carried] = (unpacked / "usr/lib/nftguard/python").glob("structlog-*.dist-info")
    version = carried.name.removeprefix("structlog-").removesuffix(".dist-info")
    assert f"bundled(python3dist(structlog)) = {version}" in ask(package, "--provides")
    assert 'sys.path.append("/usr/lib/nftguard/python")' in (unpacked / "usr/bin/nftguard").read_text()


def test_its_scripts_name_units_that_are_in_it(package: Path, entries: dict[str, Entry]) -> None:
    found = dict(scripts(package))
    for script in found.values():
        for unit in re.findall(r"[\w-]+\.(?:service|path)", script):
            assert f"{UNITS}/{unit}" in entries, unit
    # Stopping or restarting what is started at boot alone lifts nothing and loads nothing.
    assert "nftguard-boot.service" not in found["POSTUN"]
    assert all(subprocess.run(["sh", "-n"], input=script, text=True, check=True) for script in found.values())


def test_the_version_stands_in_one_place() -> None:
    spec = (CHECKOUT / "contrib/rpm/nftguard.spec").read_text()
    assert "\nVersion:        @VERSION@\n" in spec
    for text in (spec, (CHECKOUT / "pyproject.toml").read_text(), (CHECKOUT / "Makefile").read_text()):
        assert nftguard.__version__ not in text
