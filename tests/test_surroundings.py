"""What names stand for on this host, and what is said of those that stand for nothing."""
# ruff: noqa: ISC004 - sentences longer than a line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nftguard import surroundings
from nftguard.surroundings import Surroundings
from nftguard.who.cgroups import Tree
from tests.examples import config_of

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = '[[block]]\nname = "mail"\nports = [25]\n'


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "passwd").write_text("www-data:x:33:33::/:\npostfix:x:104:108::/:\n")
    (tmp_path / "group").write_text("mail:x:8:\n")
    return tmp_path


def problems(etc: Path, allow: str, tree: Tree | None = None) -> tuple[str, ...]:
    return Surroundings(lambda: tree, etc=etc).problems(config_of(f"{BLOCK}allow = {{ {allow} }}\n"))


def test_users_and_groups_are_looked_up_and_what_is_missing_is_named_with_what_is_near(etc: Path) -> None:
    config = config_of(BLOCK + 'allow = { users = ["postfix", 7, "www-dta"], groups = ["mail", "male"] }\n')
    host = Surroundings(etc=etc).host(config)
    assert (host.users["postfix"], host.groups["mail"]) == (104, 8)
    assert Surroundings(etc=etc).problems(config) == (
        "block mail allows the user www-dta (did you mean www-data?), which is not in /etc/passwd: nothing passes for "
        "it until it is",
        "block mail allows the group male, which is not in /etc/group: nothing passes for it until it is",
    )


def test_an_interface_that_is_not_there_is_named(etc: Path) -> None:
    (told,) = problems(etc, 'interfaces = ["lo", "l*", "nosuch0", "nosuch*"]')[:1]
    assert told == "block mail allows the interface nosuch0, which this host does not have now"
    assert len(problems(etc, 'interfaces = ["lo", "l*", "nosuch0", "nosuch*"]')) == 2


def test_a_unit_that_neither_runs_nor_could_is_named(etc: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = etc / "units"
    files.mkdir()
    for name in ("postfix.service", "ssh@.service"):
        (files / name).touch()
    monkeypatch.setattr(surroundings, "_UNIT_FOLDERS", (str(files), str(etc / "not-there")))
    (base / "runs-without-a-file.service").mkdir()
    tree = Tree(base.parent)
    try:
        units = ["postfix.service", "ssh@1.service", "any.scope", "runs-without-a-file.service", "postfx.service"]
        assert problems(etc, f"units = {units}", tree) == (
            "block mail allows the unit postfx.service (did you mean postfix.service?), which does not run and has no "
            "file: nothing passes for it",
        )
    finally:
        tree.close()


def test_units_without_control_groups_are_told(etc: Path) -> None:
    assert problems(etc, 'units = ["postfix.service"]') == (
        "units are allowed, but nothing passes for them: control groups cannot be followed here",
    )
