"""Who is behind an attempt, said in a few words that nobody can forge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nftguard.who.culprit import Culprit

SERVICE = Culprit(uid=998, unit="shadowsocks.service")


@pytest.mark.parametrize(
    ("culprit", "sentence"),
    [
        (Culprit(uid=998, unit="shadowsocks.service", program="ss-server"), "ss-server (shadowsocks.service, uid 998)"),
        (SERVICE, "shadowsocks.service (uid 998)"),
        (Culprit(uid=1000, user="alice", session="3", program="curl"), "curl (session 3, user alice)"),
        (Culprit(uid=0, user="root", unit="x.scope", container="docker:0123456789"), "docker:0123456789 (user root)"),
        (Culprit(uid=9, unit="user@9.service", user_unit="x.scope"), "x.scope of user@9.service (uid 9)"),
        (Culprit(uid=0, user="root"), "user root (unit not known)"),
        (Culprit(program="curl"), "curl"),
        (Culprit(unit="x.service"), "x.service"),
        (Culprit(), "nobody known"),
        (Culprit(source="10.0.3.7", interface="br0", container="lxc:web"), "10.0.3.7 (lxc:web, on br0)"),
        (Culprit(source="10.0.3.7"), "10.0.3.7"),
    ],
)  # fmt: skip
def test_what_is_known_is_said_and_nothing_else(culprit: Culprit, sentence: str) -> None:
    assert str(culprit) == sentence


@pytest.mark.parametrize("name", ["x (ssh.service, uid 0)", 'x" (ssh.service, uid 0)', "a, uid 0)", "(", "x y"])
def test_no_name_can_be_taken_for_more_than_a_name(name: str) -> None:
    service = Culprit(uid=9, unit="a.service")
    for culprit in (replace(service, program=name), replace(service, user_unit=name), replace(service, user=name)):
        outside = "".join(str(culprit).replace('\\"', "").split('"')[::2])
        assert "ssh.service" not in outside
        assert "uid 0" not in outside


def test_attempts_are_of_one_culprit_whatever_the_process_and_the_port() -> None:
    first, second = (Culprit(uid=9, unit="a.service", program="x", pid=pid, cmdline=str(pid)) for pid in (1, 2))
    assert first.key == second.key
    assert first.key != Culprit(uid=9, unit="b.service", program="x").key
    assert Culprit(source="10.0.0.1").key != Culprit(source="10.0.0.2").key
