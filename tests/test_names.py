from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nftguard.names import clean, shown


@pytest.mark.parametrize("name", ["ss-server", "kworker/0:1", "user@1000.service", "apt.systemd_daily", "c++"])
def test_an_ordinary_name_is_shown_as_it_is(name: str) -> None:
    assert shown(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("curl (ssh.service, uid 0)", '"curl (ssh.service, uid 0)"'),
        ('x" (a.service)', '"x\\" (a.service)"'),
        ("back\\", '"back\\\\"'),
        ("a\nb\x1b[31m", '"a?b?[31m"'),
        ("Web Content", '"Web Content"'),
        ("", '""'),
    ],
)
def test_a_name_that_could_be_taken_for_more_is_quoted(name: str, expected: str) -> None:
    assert shown(name) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a\nb\r\t\x7f\x00", "a?b????"),
        ("right\u202eleft\u200b", "right?left?"),
        (os.fsdecode(b"\xff\xfe."), "??."),
        ("żółw", "żółw"),
        (b"\xc5\xbc\xff", "ż?"),
    ],
)
def test_what_does_not_print_becomes_a_question_mark(raw: str | bytes, expected: str) -> None:
    assert clean(raw) == expected


@given(st.one_of(st.binary(max_size=2000), st.text(max_size=2000)))
def test_any_name_becomes_one_bounded_printable_line(raw: str | bytes) -> None:
    name = clean(raw)
    assert name.isprintable()
    assert len(name) <= 256
    name.encode()


@given(st.text(max_size=40))
def test_no_name_ends_its_quotes_or_begins_a_unit(name: str) -> None:
    line = f"from {shown(name)} (real.service, uid 7)"
    inside, unquoted, escaped = False, "", False
    for letter in line:
        if escaped:
            escaped = False
        elif inside and letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
        elif not inside:
            unquoted += letter
    assert unquoted[unquoted.index("(") :] == "(real.service, uid 7)"
