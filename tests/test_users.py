from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from nftguard.who.users import Users, parse

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
    assert names == {5: "a", 6: "#c", 8: "bad?[31m"}
    assert {names[number]: number for number in names}.items() <= ids.items()


@given(st.binary(max_size=300))
def test_no_file_makes_it_fail(data: bytes) -> None:
    parse(data)
