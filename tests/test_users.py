from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from nftguard.who.users import _MOST, Users, parse

if TYPE_CHECKING:
    from pathlib import Path


def test_the_hosts_own_file_names_root() -> None:
    assert Users().name(0) == "root"
    assert Users().name(4_000_000_123) == ""


def test_a_new_user_is_known_once_the_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0::/root:/bin/sh\n")
    users = Users(path)
    assert users.name(998) == ""
    (tmp_path / "new").write_text("root:x:0:0::/root:/bin/sh\nproxy:x:998:998::/:/bin/false\n")
    (tmp_path / "new").replace(path)
    assert users.name(998) == "proxy"


def test_a_file_that_is_missing_or_not_there_for_a_moment_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    users = Users(path)
    assert users.name(0) == ""
    path.write_text("root:x:0:0::/root:/bin/sh\n")
    assert users.name(0) == "root"
    path.unlink()
    assert users.name(0) == "root"


def test_the_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0::/root:/bin/sh\n")
    users = Users(path)
    users.name(0)
    status = path.stat()
    path.write_text("toor:x:0:0::/root:/bin/sh\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert users.name(0) == "root", "same size and time: not looked at again"


def test_the_first_of_two_names_counts_and_bad_lines_count_for_nothing() -> None:
    data = (
        b"a:x:5:5::/:\nb:x:5:5::/:\n#c:x:6\n\n+::::::\n:x:7:\nd:x:-1:\ne:x:\xb2:\nbad\x1b[31m:x:8:8\nf:x:99999999999\n"
    )
    names, ids = parse(data)
    assert names == {5: "a", 8: "bad?[31m"}
    assert {names[number]: number for number in names}.items() <= ids.items()


def test_an_id_beyond_32_bits_is_nobodys() -> None:
    """One that is let through would have the kernel refuse every rule."""
    assert parse(b"bob:x:9999999999:1::/:\nall:x:4294967295:1::/:\nlast:x:4294967294:1::/:\n")[1] == {
        "last": 4294967294
    }


def test_a_line_that_is_cut_names_nobody() -> None:
    data = b"bob:x:100:1::/:\n" * (_MOST // 16) + b"eve:x:10002:1::/:\n"
    assert parse(data[: _MOST + 1]) == ({100: "bob"}, {"bob": 100})
    assert parse(b"bob:x:100") == ({}, {})


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    os.mkfifo(path)
    assert Users(path).ids() == {}
    link = tmp_path / "link"
    (tmp_path / "real").write_text("bob:x:100:1::/:\n")
    link.symlink_to(tmp_path / "real")
    assert Users(link).ids() == {"bob": 100}


@given(st.binary(max_size=300))
def test_no_file_makes_it_fail(data: bytes) -> None:
    parse(data)
