"""The own-foot guard: a change that cuts off its maker's session, or a service of this host, is named and not done."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nftguard import alone, footing, logins
from nftguard.footing import Session
from nftguard.model import Protocol
from nftguard.wire import sockdiag
from tests.examples import table_of
from tests.guard import Guard, cli
from tests.hosts import FAMILIES, Hosts, address, listening

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.kernel import Nftables
    from tests.netns import Namespace

SSH = Session("203.0.113.9", 40022, "198.51.100.1", 22)
SSH6 = Session("2001:db8::9", 40022, "2001:db8::1", 22)
OUTPUT = table_of('[[block]]\nname = "mail"\nports = [22, 25]\n')


def block(more: str, ports: str = "[22]") -> str:
    return f'[[block]]\nname = "in"\nports = {ports}\n{more}\n'


@pytest.mark.parametrize("session", [SSH, SSH6])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (block('hooks = ["input"]'), "block in names port 22 on input"),
        (block("", '["1024-65535"]'), "block in names port 40022 on output"),
        (block("", "[22]"), ""),
        (block('hooks = ["forward"]'), ""),
        (block('hooks = ["input"]\nconnections = "new"'), ""),
        (block('hooks = ["input"]\nprotocols = ["udp"]'), ""),
        (block('hooks = ["input"]\nallow = { from = ["203.0.113.0/24", "2001:db8::/64"] }'), ""),
        (block('hooks = ["input"]\nallow = { from = ["192.0.2.0/24"] }'), "block in names port 22 on input"),
        (block("allow = { users = [0] }", '["1024-65535"]'), ""),
        (block("allow = { users = [1000] }", '["1024-65535"]'), "block in names port 40022 on output"),
        (block('hooks = ["input"]', "[23]"), ""),
    ],
)
def test_a_session_is_cut_when_its_packets_are(session: Session, text: str, told: str) -> None:
    found = footing.losses(OUTPUT, table_of(text), [session], [])
    assert len(found) == bool(told)
    assert all(told in line and "it would cut the SSH session from" in line for line in found)


def test_what_is_blocked_already_is_no_news() -> None:
    wanted = table_of(block('hooks = ["input"]'))
    assert footing.losses(None, wanted, [], [(Protocol.TCP, "0.0.0.0", 22)])  # noqa: S104
    assert footing.losses(wanted, wanted, [SSH], [(Protocol.TCP, "0.0.0.0", 22)]) == ()  # noqa: S104


@pytest.mark.parametrize("allow", ['interfaces = ["lo"]', 'from = ["127.0.0.0/8", "::1"]'])
def test_what_listens_for_this_host_alone_is_not_cut_off_where_loopback_is_allowed(allow: str) -> None:
    wanted = table_of(block(f'hooks = ["input"]\nallow = {{ {allow} }}', "[25]"))
    inside = {(Protocol.TCP, "127.0.0.1", 25), (Protocol.TCP, "::1", 25)}
    assert footing.losses(OUTPUT, wanted, [], inside) == ()
    assert len(footing.losses(OUTPUT, wanted, [], inside | {(Protocol.TCP, "::", 25)})) == 1
    assert len(footing.losses(OUTPUT, table_of(block('hooks = ["input"]', "[25]")), [], inside)) == 2


def test_what_listens_is_named_up_to_a_few() -> None:
    wanted = table_of(block('hooks = ["input"]\nprotocols = ["tcp", "udp"]', '["1-1000"]'))
    there = {(Protocol.TCP, "::", port) for port in range(1, 9)} | {(Protocol.UDP, "127.0.0.1", 53)}
    found = footing.losses(OUTPUT, wanted, [], there)
    assert len(found) == 6
    assert "it would block tcp [::]:1, on which this host listens: block in names port 1 on input" in found
    assert found[-1] == "and 4 more on which this host listens"


@FAMILIES
def test_what_this_host_listens_on(hosts: Hosts, family: int) -> None:
    with (
        listening(hosts.guarded, family, (22,)) as listeners,
        hosts.guarded.entered(),
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        datagrams.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 53))
        client.connect((address(family, 2), 53))
        everywhere, loopback = ("::", "::1") if family == socket.AF_INET6 else ("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert sockdiag.listening() == {(Protocol.TCP, everywhere, 22), (Protocol.UDP, loopback, 53)}
        assert sockdiag.established(22) == set()
        with hosts.outer.entered(), socket.create_connection((address(family, 2, 1), 22), timeout=3) as session:
            _, port = session.getsockname()[:2]
            with listeners[22].accept()[0], hosts.guarded.entered():
                assert sockdiag.established(22) == {(address(family, 2), port, address(family, 2, 1))}


def test_a_session_is_found_through_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which clears the environment: the shell that called it still has it."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    code = "from nftguard import logins; print(logins.sessions())"
    script = f"env -i PATH=$PATH {sys.executable} -c '{code}'"  # a shell in between, as sudo is
    environment = os.environ | {"SSH_CONNECTION": "2001:db8::9 40022 2001:db8::1 22"}
    done = subprocess.run(["sh", "-c", f"{script}; true"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"[{SSH6!r}]\n"


@pytest.mark.parametrize("value", ["", "a b c d", "1.2.3.4 22", "1.2.3.4 x 1.2.3.5 22"])
def test_no_session_where_there_is_none_or_a_strange_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    here = tmp_path / str(os.getpid())
    here.mkdir()
    (here / "environ").write_bytes(b"A=\xff\0SSH_CONNECTION=" + value.encode() + b"\0")
    (here / "stat").write_bytes(b"5 (a) b) S 0 1")
    assert logins.sessions(tmp_path) == []
    assert logins.sessions(tmp_path / "no") == []


def test_an_apply_says_what_it_would_cut_off_and_changes_nothing(
    hosts: Hosts, config_file: Path, folders: Path
) -> None:
    with Guard(hosts.guarded, config_file, folders) as guard, listening(hosts.guarded, socket.AF_INET, (22,)):
        guard.ready()
        before = hosts.packets()
        config_file.write_text(block('hooks = ["input"]'))
        done = guard.cli("check")
        assert (done.returncode, "on which this host listens" in done.stderr) == (0, True)
        done = guard.cli("apply")
        assert done.returncode == 1
        assert (
            "it would block tcp 0.0.0.0:22, on which this host listens: block in names port 22 on input" in done.stderr
        )
        assert "`nftguard apply --force`" in done.stderr
        assert hosts.packets() == before
        assert guard.cli("apply", "--force").returncode == 0
        assert set(hosts.packets()) == {"in.input.tcp.22"}
        assert guard.cli("apply").returncode == 0, "it is blocked already: no news"


def test_without_a_daemon_it_is_the_same(netns: Namespace, config_file: Path, folders: Path) -> None:
    config_file.write_text(block('hooks = ["input"]'))
    with listening(netns, socket.AF_INET6, (22,)):
        assert cli(netns, config_file, "apply").returncode == 1
        assert netns.nft("list ruleset") == ""
        assert cli(netns, config_file, "apply", "--force").returncode == 0
        assert "in.input.tcp.22" in netns.nft("list ruleset")
    assert folders


def test_a_session_is_guarded_also_where_sockets_are_not_listed(
    kernel: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel without inet_diag."""

    def refuse() -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(sockdiag, "listening", refuse)
    monkeypatch.setattr(logins, "sessions", lambda: [SSH])
    (found,) = alone.losses(table_of(block('hooks = ["input"]')), kernel)
    assert "it would cut the SSH session from 203.0.113.9:40022 to port 22" in found


def test_a_refused_configuration_is_left_to_whoever_tells_why(kernel: Nftables, config_file: Path) -> None:
    config_file.write_text(block("nonsense = 1"))
    alone.guard(config_file, kernel)
