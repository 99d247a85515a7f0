"""The verbs, as an administrator types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from nftguard import bootscript, state
from nftguard.cli import cli as command
from tests.conftest import ORIGIN
from tests.guard import Guard, cli
from tests.netns import Namespace

if TYPE_CHECKING:
    from pathlib import Path

    from nftguard.kernel import Nftables

pytestmark = pytest.mark.usefixtures("folders")


def as_nobody(netns: Namespace, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb without any privilege."""
    for folder in [*config.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    return netns.run(*become, sys.executable, "-m", "nftguard", "--config", str(config), *arguments, check=False)


def test_help_teaches_the_first_steps() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "nftguard", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for word in (
        "check",
        "plan",
        "apply",
        "remove",
        "status",
        "run",
        "systemctl enable --now nftguard",
        "journalctl -u nftguard",
    ):
        assert word in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("verb", [*command.commands])
def test_every_verb_explains_itself(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nftguard", verb, "--help"], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) > 5
    assert "..." not in done.stdout.partition("\n")[2], "but for the usage, nothing is cut"


def test_check_says_valid_and_asks_the_kernel(netns: Namespace, config_file: Path, kernel: Nftables) -> None:
    done = cli(netns, config_file, "check")
    assert (done.returncode, done.stdout) == (
        0, "valid, and the kernel would take it: 11 tcp ports blocked on output\n",
    )  # fmt: skip
    assert kernel.snapshot() is None, "nothing was changed"


def test_check_reads_the_files_and_looks_at_this_host_once(netns: Namespace, config_file: Path) -> None:
    """What changes in between would be told of one state, and checked of another."""
    code = f"""
import sys
from unittest.mock import patch
from nftguard import config, surroundings
from nftguard.cli import cli
with (
    patch.object(config, "load", wraps=config.load) as load,
    patch.object(surroundings, "once", wraps=surroundings.once) as once,
):
    cli(["--config", {str(config_file)!r}, "check"], standalone_mode=False)
print(load.call_count, once.call_count)
"""
    told = netns.run(sys.executable, "-c", code).stdout.splitlines()
    assert told == ["valid, and the kernel would take it: 11 tcp ports blocked on output", "1 1"]


_HOSTILE = (
    '[[block]]\nname = "a"\nports = [25]\nallow = { to = ["mx.1e100", "mx1.x2", "1.2.3.4.5", "0x7f.1", "a.1"] }\n',
    '[[block]]\nname = "a"\nports = [25]\nallow = { from = ["::ffff:1.2.3.4", "fe80::1%eth0", "::/0", "@local"] }\n',
    '[[block]]\nname = "a"\nports = [25]\nallow = { to = ["::ffff:10.0.0.0/104", "2001:db8::7", "@local", "ab.c1"] }\n',
    '[[block]]\nname = "a"\nports = [25]\nallow = { users = ["nosuch$", 4294967294], units = ["a\\\\x2db.service"] }\n',
    '[[block]]\nname = "a"\nports = ["1-65535"]\nexcept_ports = ["1-65534"]\nhooks = ["bridge", "input"]\n',
    '[[block]]\nname = "a"\nports = [25]\n[log]\ntarget = "kernel"\nprefix = "{block}{{}}: "\n',
    'block = 7\nlog = "x"\nservice = [1]\n',
    "[[block]]\nports = " + "[" * 400 + "]" * 400 + "\n",
    '[[block]]\nname = "a"\nports = [1e400, nan, 1979-05-27, -1, 99999999999999999999999, true, {}]\n',
    "\x00\xff",
)


def test_no_verb_answers_a_strange_configuration_with_a_traceback(netns: Namespace, config_file: Path) -> None:
    """One process tries them all: click's runner gives what a verb raised."""
    code = f"""
import traceback
from pathlib import Path
from click.testing import CliRunner
from nftguard.cli import cli
for text in {_HOSTILE!r}:
    Path({str(config_file)!r}).write_text(text, encoding="latin-1")
    for verb in ("check", "plan", "apply", "status"):
        done = CliRunner().invoke(cli, ["--config", {str(config_file)!r}, verb])
        if done.exception and not isinstance(done.exception, SystemExit):
            print(text, verb)
            traceback.print_exception(done.exception)
        print(verb, done.exit_code)
"""
    done = netns.run(sys.executable, "-c", code)
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 * len(_HOSTILE)
    assert {line for line in lines if not line.startswith("status")} <= {
        f"{verb} {code}" for verb in ("check", "plan", "apply") for code in (0, 78)
    }


def test_check_without_privilege_says_that_the_kernel_was_not_asked(netns: Namespace, config_file: Path) -> None:
    done = as_nobody(netns, config_file, "check")
    assert done.returncode == 0, done.stderr
    assert "the kernel was not asked" in done.stdout


def test_check_exits_78_with_every_error_on_stderr(netns: Namespace, config_file: Path) -> None:
    config_file.write_text('[[block]]\nname = "a b"\nports = [0]\n')
    done = cli(netns, config_file, "check")
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["block[0].name", "block[0].ports[0]"]


def test_a_file_that_the_user_cannot_read_is_told(netns: Namespace, config_file: Path) -> None:
    config_file.chmod(0o600)
    done = as_nobody(netns, config_file, "check")
    assert done.returncode == 78
    assert f"{config_file}: cannot be read: Permission denied" in done.stderr


def test_plan_prints_the_script_that_apply_runs(netns: Namespace, config_file: Path, kernel: Nftables) -> None:
    done = cli(netns, config_file, "plan", "--exit-code")
    assert done.returncode == 1
    assert done.stdout.startswith("# the table is missing\ncreate table inet nftguard\n")
    assert kernel.snapshot() is None
    netns.nft(done.stdout)
    done = cli(netns, config_file, "plan", "--exit-code")
    assert (done.returncode, done.stdout) == (0, "")
    netns.nft("delete element inet nftguard output.tcp { 25 }")
    done = cli(netns, config_file, "plan")
    assert (done.returncode, done.stdout) == (
        0,
        "# map output.tcp lacks port 25\nadd element inet nftguard output.tcp { 25 : goto mail.output.tcp }\n",
    )


def test_apply_twice_changes_nothing_the_second_time(netns: Namespace, config_file: Path) -> None:
    assert cli(netns, config_file, "apply").stdout == "11 tcp ports blocked on output (44 changes)\n"
    assert cli(netns, config_file, "apply").stdout == "11 tcp ports blocked on output (already in force)\n"


def test_remove_deletes_our_table_alone_and_is_no_error_twice(
    netns: Namespace, config_file: Path, kernel: Nftables
) -> None:
    netns.nft("add table inet other")
    cli(netns, config_file, "apply")
    assert cli(netns, config_file, "remove").returncode == 0
    assert kernel.snapshot() is None
    done = cli(netns, config_file, "remove")
    assert (done.returncode, done.stdout) == (0, "nothing was blocked\n")
    assert "other" in netns.run("nft", "list", "tables").stdout


def test_remove_works_with_a_broken_configuration(netns: Namespace, config_file: Path) -> None:
    cli(netns, config_file, "apply")
    config_file.write_text("[")
    assert cli(netns, config_file, "remove").returncode == 0


def test_status_follows_the_kernel(netns: Namespace, config_file: Path) -> None:
    def status() -> tuple[int, str]:
        done = cli(netns, config_file, "status", "--json")
        return done.returncode, json.loads(done.stdout)["state"]

    assert status() == (2, "unprotected")
    cli(netns, config_file, "apply")
    assert status() == (0, "protected")
    netns.nft("delete element inet nftguard output.tcp { 25 }")
    assert status() == (1, "degraded")
    netns.nft("flush chain inet nftguard output")
    assert status() == (2, "unprotected")
    cli(netns, config_file, "apply")
    config_file.write_text("[")
    assert status() == (1, "degraded")


def test_status_has_a_row_a_port(netns: Namespace, config_file: Path) -> None:
    cli(netns, config_file, "apply")
    done = cli(netns, config_file, "status")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("mail")]
    assert [row[:6] for row in rows] == [["mail", "output", "tcp", str(port), "0", "0"] for port in ORIGIN]
    assert "daemon: not running" in done.stdout


def test_status_warns_where_the_host_forwards_and_nothing_forwarded_is_blocked(
    netns: Namespace, config_file: Path
) -> None:
    cli(netns, config_file, "apply")
    assert "warning" not in cli(netns, config_file, "status").stdout
    netns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    told = "warning: what this host routes for others (IPv4): no block has the hook forward\n"
    assert told in cli(netns, config_file, "status").stdout
    config_file.write_text(config_file.read_text() + 'hooks = ["output", "forward"]\n')
    cli(netns, config_file, "apply")
    assert "warning" not in cli(netns, config_file, "status").stdout


@pytest.mark.parametrize(
    ("hooks", "warned"),
    [(["output"], True), (["output", "forward"], True), (["output", "bridge"], False), (["forward", "bridge"], False)],
)
def test_status_warns_while_bridges_have_ports_and_no_block_has_that_hook(
    netns: Namespace, config_file: Path, hooks: list[str], warned: bool
) -> None:
    """A bridge is no matter of the hook forward, nor is a macvlan of any hook."""
    config_file.write_text(f"{config_file.read_text()}hooks = {hooks}\n")
    cli(netns, config_file, "apply")
    netns.run("ip", "link", "add", "br0", "type", "bridge")
    netns.run("ip", "link", "add", "port0", "type", "veth", "peer", "name", "veth0")
    netns.run("ip", "link", "add", "mv0", "link", "veth0", "type", "macvlan")
    assert "warning" not in cli(netns, config_file, "status").stdout, "it has no ports"
    netns.run("ip", "link", "set", "port0", "master", "br0")
    warnings = [line for line in cli(netns, config_file, "status").stdout.splitlines() if "warning" in line]
    told = "  warning: what goes from port to port of a bridge (br0): no block has the hook bridge"
    assert warnings == [told] * warned


def test_without_privilege_status_gives_the_daemons_last_word_and_its_age(
    netns: Namespace, config_file: Path, folders: Path
) -> None:
    done = as_nobody(netns, config_file, "status")
    assert done.returncode == 69
    assert "no word from a daemon" in done.stderr
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        done = as_nobody(netns, config_file, "status")
        assert done.returncode == 0
        assert re.search(r"this is the daemon's word of \d s ago; only root may ask the kernel", done.stdout)
        assert done.stdout.startswith("protected: 11 tcp ports blocked on output")
    path = folders / "run/status.json"
    word = json.loads(path.read_text())
    path.write_text(json.dumps(word | {"at": time.time() - 1000, "stale_after": time.time() - 1}))
    done = as_nobody(netns, config_file, "status")
    assert done.returncode == 3
    assert re.search(r"the daemon.s word of 100\d s ago, too old to count", done.stdout)


@pytest.mark.parametrize("verb", ["apply", "remove", "plan", "run"])
def test_without_privilege_one_line_says_so(netns: Namespace, config_file: Path, verb: str) -> None:
    done = as_nobody(netns, config_file, verb)
    assert done.returncode == 77, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "root" in done.stderr


def test_without_libnftables_one_line_says_so(netns: Namespace, config_file: Path) -> None:
    code = f"import sys; sys.modules['nftables'] = None; sys.argv[1:] = ['--config', {str(config_file)!r}, 'apply']\n"
    done = netns.run(sys.executable, "-c", code + "from nftguard.__main__ import main; main()", check=False)
    assert done.returncode == 69
    assert "install the package python3-nftables" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_configuration_that_is_not_there_is_told(netns: Namespace, tmp_path: Path) -> None:
    done = cli(netns, tmp_path / "none.toml", "plan")
    assert done.returncode == 78
    assert "cannot be read: No such file or directory" in done.stderr


def test_a_daemon_of_another_network_namespace_is_not_asked(netns: Namespace, config_file: Path, folders: Path) -> None:
    """As when a guard is tried out under unshare -n beside the machine's own."""
    other = Namespace()
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        for verb in ("apply", "remove"):
            done = cli(other, config_file, verb)
            assert done.returncode == 1
            assert "the running daemon guards another network namespace; set RUNTIME_DIRECTORY" in done.stderr
        done = cli(other, config_file, "status")
        assert done.returncode == 2
        assert "daemon: not running" in done.stdout
        assert guard.status()["state"] == "protected"
    other.close()


def test_the_fingerprint_sees_what_modification_times_miss(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text("x")
    seen = {bootscript.fingerprint(str(config))}
    times = config.stat()
    config.write_text("y")
    os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.add(bootscript.fingerprint(str(config)))
    drop_ins = tmp_path / "a.d"
    drop_ins.mkdir()
    (drop_ins / "1.toml").write_text("")
    seen.add(bootscript.fingerprint(str(config)))
    (drop_ins / "1.toml").rename(drop_ins / "2.toml")
    seen.add(bootscript.fingerprint(str(config)))
    (drop_ins / "2.toml").unlink()
    assert len(seen) == 4
    assert bootscript.fingerprint(str(config)) in seen, "and that of the removed drop-in is the one before"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x"
    state.write(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.write(path, "new")
    assert path.read_text() == "old"
    assert [*path.parent.iterdir()] == [path], "nothing left lying about"
