from __future__ import annotations

import ctypes
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from nftguard import inotify
from nftguard.errors import UnavailableError
from nftguard.who import cgroups
from nftguard.who.cgroups import Tree
from tests.groups import joining

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tree(base: Path, clock: list[float]) -> Iterator[Tree]:
    (base / "system.slice/old.service/sub").mkdir(parents=True)
    tree = Tree(base, lambda: clock[0])
    yield tree
    tree.close()


def number(path: Path) -> int:
    return path.stat().st_ino


def test_the_tree_is_found_where_it_is_mounted() -> None:
    assert (cgroups.mounted() / "cgroup.procs").exists()


def test_a_mount_point_may_hold_spaces_and_a_hidden_or_partial_mount_is_passed_over(tmp_path: Path) -> None:
    for name in ("part", "a b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.controllers").touch()
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        f"30 23 0:28 / {tmp_path}/v1 rw - cgroup cgroup rw,cpu\n"
        f"31 23 0:29 / {tmp_path}/hidden rw - cgroup2 cgroup2 rw\n"
        f"32 23 0:29 /docker/x {tmp_path}/part rw - cgroup2 cgroup2 rw\n"
        f"33 23 0:29 / {tmp_path}/a\\040b rw shared:4 - cgroup2 cgroup2 rw\n"
        "bad\n"
    )
    assert cgroups.mounted(tmp_path) == tmp_path / "a b"
    with pytest.raises(UnavailableError, match="cgroup v2 is not mounted"):
        cgroups.mounted(tmp_path / "part")


def test_the_ids_of_a_group_are_those_of_its_parents_and_its_own(base: Path) -> None:
    (base / "a.slice/b.service").mkdir(parents=True)
    assert cgroups.ids(base, "/a.slice/b.service") == (number(base / "a.slice"), number(base / "a.slice/b.service"))
    assert cgroups.ids(base, "/") == ()
    with pytest.raises(FileNotFoundError):
        cgroups.ids(base, "/a.slice/gone.service")


def test_inside_a_cgroup_namespace_the_part_that_is_seen_counts(base: Path) -> None:
    code = "from nftguard.who import cgroups; t = cgroups.Tree(cgroups.mounted()); print(*t.paths())"
    (base / "system.slice").mkdir()
    done = subprocess.run(
        joining(base, "unshare", "-C", "-m", "sh", "-c", f'mount -t cgroup2 x /mnt && exec python3 -c "{code}"'),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("/ /system.slice\n", "")


def test_groups_that_were_there_are_known(tree: Tree, base: Path) -> None:
    assert tree.path(number(base / "system.slice/old.service/sub")) == "/system.slice/old.service/sub"
    assert tree.path(number(base)) == "/"
    assert tree.path(1 << 60) == ""
    assert tree.paths() == ["/", "/system.slice", "/system.slice/old.service", "/system.slice/old.service/sub"]
    assert tree.directory("/system.slice") == base / "system.slice"


def test_the_id_is_the_one_that_the_kernel_gives_for_a_group(tree: Tree, base: Path) -> None:
    """name_to_handle_at(2) gives the id itself (linux/fs/kernfs/mount.c, kernfs_encode_fh)."""

    class Handle(ctypes.Structure):
        _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_ulonglong))

    handle, mount = Handle(8, 0, 0), ctypes.c_int()
    path = os.fsencode(base / "system.slice/old.service")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) == 0
    assert tree.path(handle.id) == "/system.slice/old.service"


def test_a_new_group_is_known_as_soon_as_it_is_asked_for(tree: Tree, base: Path) -> None:
    (base / "system.slice/new.service").mkdir()
    assert tree.path(number(base / "system.slice/new.service")) == "/system.slice/new.service"


def test_a_group_made_within_a_new_group_is_found_by_listing(tree: Tree, base: Path) -> None:
    (base / "system.slice/a.service/b/c").mkdir(parents=True)
    assert tree.path(number(base / "system.slice/a.service/b/c")) == "/system.slice/a.service/b/c"
    (base / "system.slice/a.service/b/c/d").mkdir()
    assert tree.path(number(base / "system.slice/a.service/b/c/d")) == "/system.slice/a.service/b/c/d"


def test_a_group_that_has_ended_is_still_known_by_its_id(tree: Tree, base: Path) -> None:
    unit = base / "system.slice/short.service"
    unit.mkdir()
    first = number(unit)
    tree.read()
    unit.rmdir()
    tree.read()
    unit.mkdir()
    assert tree.path(first) == tree.path(number(unit)) == "/system.slice/short.service"
    assert first != number(unit)
    unit.rmdir()
    tree.read()
    assert "/system.slice/short.service" not in tree.paths()


def test_of_the_groups_that_have_ended_the_latest_are_remembered(
    tree: Tree, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_GONE", 3)
    numbers = []
    for name in "abcde":
        unit = base / f"system.slice/{name}.service"
        unit.mkdir()
        tree.read()
        numbers.append(number(unit))
        unit.rmdir()
        tree.read()
    assert [tree.path(one) for one in numbers] == ["", "", *(f"/system.slice/{name}.service" for name in "cde")]


def test_changes_are_counted(tree: Tree, base: Path) -> None:
    before = tree.changes
    tree.read()
    assert tree.changes == before
    (base / "system.slice/new.service").mkdir()
    tree.read()
    assert tree.changes > before


def test_lost_events_lead_to_a_walk(tree: Tree, base: Path, clock: list[float]) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:  # noqa: PTH123
        events = int(file.read())
    (base / "system.slice/old.service/sub").rmdir()
    churned = base / "system.slice/churned.service"
    for _ in range(events // 2 + 1):
        churned.mkdir()
        churned.rmdir()
    (base / "system.slice/late.service").mkdir()
    clock[0] += 2
    assert tree.path(number(base / "system.slice/late.service")) == "/system.slice/late.service"
    assert "/system.slice/old.service/sub" not in tree.paths()


def test_without_watches_a_group_is_found_by_a_walk_at_most_once_a_second(
    base: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoMore:
        def __getattr__(self, name: str) -> object:
            return getattr(libc, name)

        def inotify_add_watch(self, *_: object) -> int:
            ctypes.set_errno(28)  # ENOSPC; the real limit is the user's, and other tests need it
            return -1

    libc = inotify._libc
    monkeypatch.setattr(inotify, "_libc", NoMore())
    tree = Tree(base, lambda: clock[0])
    assert "fs.inotify.max_user_watches" in tree.problem
    clock[0] += 2
    (base / "a").mkdir()
    assert tree.path(number(base / "a")) == "/a"
    (base / "b").mkdir()
    assert tree.path(number(base / "b")) == ""
    clock[0] += 2
    assert tree.path(number(base / "b")) == "/b"
    monkeypatch.setattr(inotify, "_libc", libc)
    clock[0] += 2
    tree.path(1)
    assert tree.problem == ""
    tree.close()


def test_a_user_who_makes_groups_without_end_is_not_listened_to_for_a_while(
    tree: Tree, base: Path, clock: list[float]
) -> None:
    mine = base / "user.slice/user-1000.slice/user@1000.service/x\x1b"
    mine.mkdir(parents=True)
    tree.read()
    for _ in range(cgroups._BIRTHS + 10):
        (mine / "y").mkdir()
        (mine / "y").rmdir()
    tree.read()
    assert "/user.slice/user-1000.slice/user@1000.service makes control groups without end" in tree.problem
    (mine / "quiet").mkdir()
    (base / "system.slice/new.service").mkdir()
    tree.read()
    assert "/system.slice/new.service" in tree.paths(), "others are heard as before"
    assert "/user.slice/user-1000.slice/user@1000.service/x\x1b/quiet" not in tree.paths()
    clock[0] += 2
    assert tree.path(number(mine / "quiet")).endswith("/quiet"), "but looked for when one asks"
    clock[0] += 100
    tree.path(1)
    assert tree.problem == ""
    (mine / "loud").mkdir()
    tree.read()
    assert [path for path in tree.paths() if path.endswith("/loud")]


def test_a_user_with_too_many_groups_takes_no_room_from_others(
    base: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_BELOW", 5)
    for name in range(10):
        (base / f"user.slice/user-1000.slice/user@1000.service/{name}").mkdir(parents=True)
    (base / "system.slice/a.service").mkdir(parents=True)
    tree = Tree(base, lambda: clock[0])
    assert "more than 5 control groups in /user.slice/user-1000.slice/user@1000.service" in tree.problem
    assert len([path for path in tree.paths() if "user@1000" in path]) == 5
    assert "/system.slice/a.service" in tree.paths()
    tree.close()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a b\t\x1b[31m", "ż".encode(), b"...", b"x" * 255])
def test_a_hostile_name_is_followed_like_any_other(tree: Tree, base: Path, name: bytes) -> None:
    os.mkdir(os.fsencode(base) + b"/" + name)  # noqa: PTH102
    path = base / os.fsdecode(name)
    assert tree.path(number(path)) == f"/{os.fsdecode(name)}"
    assert tree.directory(tree.path(number(path))) == path
    path.rmdir()
    tree.read()
    assert tree.paths()[-1] == "/system.slice/old.service/sub"


def test_a_group_too_deep_to_be_followed_is_no_error(tree: Tree, base: Path) -> None:
    deep = base
    for _ in range(cgroups._DEPTH + 8):
        deep /= "d"
        deep.mkdir()
    assert tree.path(number(base / "d/d/d")) == "/d/d/d"
    assert tree.path(number(deep)) == ""


def test_no_group_of_a_storm_is_missed_while_it_lives(tree: Tree, base: Path) -> None:
    for name in range(300):
        unit = base / f"system.slice/u{name}.service"
        unit.mkdir()
        (unit / "worker").mkdir()
        found = number(unit / "worker")
        assert tree.path(found) == f"/system.slice/u{name}.service/worker"
        (unit / "worker").rmdir()
        unit.rmdir()
        assert tree.path(found) == f"/system.slice/u{name}.service/worker"
