"""What the packages are made from agrees with the rest of the checkout; building them is tested in tests/boot."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import nftguard

ROOT = Path(__file__).parents[1]
DEBIAN = ROOT / "debian"
UNITS = sorted(path.name for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".path"})


def pinned() -> dict[str, str]:
    """The libraries that the package for older releases carries, with their versions."""
    text = (DEBIAN / "requirements.txt").read_text()
    return dict(re.findall(r"^(\S+)==(\S+) \\$", text, re.MULTILINE))


def test_the_changelog_has_the_version_of_the_program() -> None:
    [version] = re.findall(r"^nftguard \((.*)\)", (DEBIAN / "changelog").read_text().splitlines()[0])
    assert version == nftguard.__version__


def test_the_libraries_that_are_carried_are_those_that_the_program_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["metrics"]]
    found = pinned()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(found[requirement.name]), requirement


def test_each_carried_library_is_told_by_its_hash() -> None:
    text = re.sub(r"^#.*\n", "", (DEBIAN / "requirements.txt").read_text(), flags=re.MULTILINE)
    for entry in text.replace("\\\n", " ").splitlines():
        name, *hashes = entry.split()
        assert hashes, name
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", told) for told in hashes), name
        # The compiled one: for CPython 3.11 and 3.12, on amd64 and arm64.
        assert len(hashes) == (4 if name.startswith("pydantic-core") else 1), name


def test_no_library_but_those_of_the_program_is_needed_from_the_distribution() -> None:
    overrides = (DEBIAN / "py3dist-overrides").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(line.split()[0] for line in overrides) == sorted(
        Requirement(text).name for text in project["dependencies"]
    )


def test_services_have_names_wherever_it_is_installed() -> None:
    """A Debian's base has /etc/services already where the tests boot it, so that no installation would show it."""
    assert re.search(r"^ +netbase,$", (DEBIAN / "control").read_text(), re.MULTILINE)


def test_removal_stops_every_unit() -> None:
    script = (DEBIAN / "nftguard.prerm").read_text()
    assert [unit for unit in UNITS if not re.search(rf"\s{re.escape(unit)}\s", script)] == []


def test_every_unit_that_can_be_enabled_is_forgotten_by_a_purge() -> None:
    rules = (DEBIAN / "rules").read_text()
    enabled = [unit for unit in UNITS if "[Install]" in (ROOT / "systemd" / unit).read_text()]
    assert [unit for unit in enabled if unit not in rules] == []


def test_what_make_install_puts_anywhere_make_uninstall_takes_away(tmp_path: Path) -> None:
    for prefix in ("/usr/local", "/usr"):
        make = ["make", f"DESTDIR={tmp_path}", f"prefix={prefix}"]
        subprocess.run([*make, "install-data"], cwd=ROOT, check=True, capture_output=True, timeout=60)
        assert len(files(tmp_path)) > 20
        unit = (tmp_path / f".{prefix}/lib/systemd/system/nftguard.service").read_text()
        assert f"ExecStart={prefix}/bin/nftguard run\n" in unit
        subprocess.run([*make, "uninstall"], cwd=ROOT, check=True, capture_output=True, timeout=60)
        assert files(tmp_path) == ["etc/nftguard.toml"]
        (tmp_path / "etc/nftguard.toml").write_text("mine")
    subprocess.run([*make, "install-data"], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "etc/nftguard.toml").read_text() == "mine"
    subprocess.run([*make, "uninstall", "purge=yes"], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert files(tmp_path) == []


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file())
