"""The service as systemd runs it: a real process, a real kernel, real notifications."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nftguard.pace import FIGHT_AFTER, NETWORK_EVERY
from nftguard.wire.nflog import Reader
from tests.guard import Guard, cli
from tests.test_kernel import DRIFTS, MAIL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nftguard.kernel import Nftables
    from tests.netns import Namespace


@pytest.fixture
def guard(netns: Namespace, config_file: Path, folders: Path) -> Iterator[Guard]:
    """A daemon that said READY."""
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        yield guard


def table(netns: Namespace) -> str:
    return netns.run("nft", "list", "table", "inet", "nftguard", check=False).stdout


def test_ready_comes_only_once_the_rules_are_live(
    netns: Namespace, kernel: Nftables, config_file: Path, folders: Path
) -> None:
    with Guard(netns, config_file, folders) as guard:
        while not any("READY" in found for found in guard.listen()):
            assert guard.process.poll() is None
            was_live = kernel.snapshot()
        assert was_live or kernel.snapshot()
        assert guard.notified[0]["READY"] == "1", "the first thing said"
        assert guard.notified[0]["STATUS"] == "11 tcp ports blocked on output"


def test_the_kernel_refusing_means_no_ready(netns: Namespace, folders: Path, config_file: Path) -> None:
    without_privilege = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    with Guard(netns, config_file, folders, before=without_privilege) as guard:
        assert guard.process.wait(10) == 77
        assert guard.listen() == []
        assert "critical not started: cannot watch the ruleset: not permitted; CAP_NET_ADMIN is missing" in guard.log()
        assert "Traceback" not in guard.log()


@pytest.mark.parametrize("script", DRIFTS.values(), ids=DRIFTS.keys())
def test_what_somebody_changes_is_mended_and_he_is_named(
    netns: Namespace, kernel: Nftables, config_file: Path, folders: Path, script: str
) -> None:
    config_file.write_text(MAIL)
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        before = kernel.snapshot()
        guard.netns.nft(script.replace("; ", "\n"))
        guard.logged("rules repaired")
        guard.until(lambda: kernel.snapshot() == before, "the table as it was")
        log = guard.log()
    line = next(line for line in log.splitlines() if "rules repaired" in line)
    assert re.search(r"changed by nft \(process \d+( of \S+)?\), mended [\d.]+ ms after", line), line


def test_a_change_elsewhere_wakes_nobody(guard: Guard) -> None:
    time.sleep(0.3)  # its own start echoes
    before = (guard.folder / "run/status.json").read_text()
    guard.netns.nft("table inet other { chain c { type filter hook output priority 0; tcp dport 1 drop; }; }")
    guard.netns.nft("delete table inet other")
    time.sleep(0.3)
    assert (guard.folder / "run/status.json").read_text() == before, "no pass was taken, which would have written it"


def test_traffic_into_the_dynamic_sets_is_not_drift(guard: Guard) -> None:
    for port in (25, 587):
        connect(guard.netns, port)
    guard.logged("blocked tcp", 2)
    guard.cli("apply")
    guard.logged("(reload: already in force)")
    assert "repaired" not in guard.log()


def connect(netns: Namespace, port: int, host: str = "127.0.0.1") -> None:
    with netns.entered(), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(0.05)
        with suppress(TimeoutError):
            sock.connect((host, port))


def test_an_attempt_is_one_plain_line(guard: Guard) -> None:
    connect(guard.netns, 25)
    connect(guard.netns, 587, "::1")
    guard.logged("blocked tcp", 2)
    lines = [line.split(" ", 1)[1] for line in guard.log().splitlines() if "blocked tcp" in line]
    assert re.fullmatch(r"info +blocked tcp 127\.0\.0\.1:25 from .*user root.*", lines[0])
    assert "tcp [::1]:587 from " in lines[1]
    guard.until(lambda: "2 attempts, the last at" in guard.listen()[-1].get("STATUS", ""), "a STATUS with the attempts")
    row = next(row for row in guard.status()["ports"] if row["port"] == 25)
    assert row["packets"] >= 1
    assert abs(row["last_seen"] - time.time()) < 20


def test_a_reload_is_bracketed_and_takes_the_new_file(guard: Guard, kernel: Nftables) -> None:
    guard.config.write_text('[[block]]\nname = "mail"\nports = [25, 26]\n')
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    guard.signal(signal.SIGHUP)
    guard.ready(2)
    live = kernel.snapshot()
    assert live is not None
    assert sorted(live.counters) == ["mail.output.tcp.25", "mail.output.tcp.26"]
    names = [found for found in guard.notified if found.keys() & {"RELOADING", "READY"}]
    assert [*names[1]] == ["RELOADING", "MONOTONIC_USEC", "STATUS"]
    assert before <= int(names[1]["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert names[2]["STATUS"] == "2 tcp ports blocked on output"


def test_a_refused_reload_leaves_the_old_rules_and_says_so_once(guard: Guard, kernel: Nftables) -> None:
    before = kernel.snapshot()
    good = guard.config.read_text()
    guard.config.write_text('[[block]]\nname = "mail"\nports = [25, 70000]\n')
    guard.signal(signal.SIGHUP)
    guard.ready(2)
    assert kernel.snapshot() == before
    problem = f"{guard.config}: block[0].ports[1]: port 70000 is out of range; ports are 1 to 65535"
    assert guard.log().count(f"error   {problem}\n") == 1
    assert guard.log().count("new configuration refused (1 problem); the last good rules stay in force") == 1
    assert problem in guard.listen()[-1]["STATUS"]
    document = guard.status()
    assert document["state"] == "degraded"
    guard.netns.nft("flush ruleset")
    guard.logged("rules repaired")
    assert kernel.snapshot() == before, "what was live is still kept in force"
    guard.config.write_text(good)
    guard.signal(signal.SIGHUP)
    guard.ready(3)
    assert guard.status()["state"] == "protected"
    assert guard.listen()[-1]["STATUS"] == "11 tcp ports blocked on output"


def test_apply_waits_for_the_outcome_of_the_reload(guard: Guard, kernel: Nftables) -> None:
    guard.config.write_text('[[block]]\nname = "mail"\nports = [2525]\n')
    done = guard.cli("apply")
    assert (done.returncode, done.stdout) == (0, "1 tcp port blocked on output\n")
    live = kernel.snapshot()
    assert live is not None
    assert [*live.counters] == ["mail.output.tcp.2525"]
    guard.config.write_text("[[block]]\n")
    done = guard.cli("apply")
    assert done.returncode == 78
    assert "block[0].name: is missing" in done.stderr
    assert "block[0].ports: is missing" in done.stderr


def test_apply_with_another_file_is_refused_while_the_daemon_runs(guard: Guard, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(guard.config.read_text())
    done = cli(guard.netns, other, "apply")
    assert done.returncode == 1
    assert str(guard.config) in done.stderr


def test_remove_suspends_until_apply(guard: Guard, kernel: Nftables) -> None:
    assert guard.cli("remove").returncode == 0
    assert kernel.snapshot() is None
    guard.netns.nft("add table inet nftguard")
    guard.netns.nft("delete table inet nftguard")
    time.sleep(0.2)
    assert kernel.snapshot() is None, "it stays removed"
    assert guard.listen()[-1]["STATUS"].startswith("SUSPENDED")
    assert guard.cli("status").returncode == 2
    assert guard.cli("apply").returncode == 0
    assert guard.status()["state"] == "protected"
    assert guard.cli("remove").returncode == 0
    assert guard.cli("remove").returncode == 0, "no error when there is nothing to remove"


def test_one_instance_at_a_time(guard: Guard) -> None:
    done = guard.cli("run")
    assert done.returncode == 1
    assert f"another nftguard is running (process {guard.process.pid}" in done.stderr
    assert guard.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_lifts_the_rules(guard: Guard, kernel: Nftables, number: signal.Signals) -> None:
    guard.signal(number)
    assert guard.process.wait(10) == 0
    assert kernel.snapshot() is None
    assert guard.listen()[-1]["STOPPING"] == "1"


def test_stopping_keeps_the_rules_where_it_is_told_to(guard: Guard, kernel: Nftables) -> None:
    guard.config.write_text(guard.config.read_text() + '[service]\non_stop = "keep"\n')
    guard.signal(signal.SIGHUP)
    guard.ready(2)
    assert guard.stop() == 0
    assert kernel.snapshot() is not None


def test_the_watchdog_is_fed_by_the_loop(netns: Namespace, config_file: Path, folders: Path) -> None:
    with Guard(netns, config_file, folders, WATCHDOG_USEC="200000") as guard:
        guard.ready()
        begun = time.monotonic()
        guard.until(lambda: sum("WATCHDOG" in found for found in guard.notified) >= 5, "five signs of life")
        assert time.monotonic() - begun >= 0.35, "every 0.1 s, not more often"
        guard.signal(signal.SIGSTOP)
        guard.listen()
        count = len(guard.notified)
        time.sleep(0.3)
        assert len(guard.listen()) == count, "a stuck loop is silent"
        guard.signal(signal.SIGCONT)
        guard.until(lambda: len(guard.notified) > count, "life again")


def test_a_quiet_service_sleeps(guard: Guard) -> None:
    """Nothing wakes it but the watchdog and timers that are seconds apart."""
    time.sleep(1.5)  # its own start echoes
    switches = re.compile(r"^voluntary_ctxt_switches:\t(\d+)", re.MULTILINE)

    def woken() -> int:
        found = switches.search(Path(f"/proc/{guard.process.pid}/status").read_text())
        assert found
        return int(found[1])

    def second() -> int:
        before = woken()
        time.sleep(1)
        return woken() - before

    # Control groups of the whole machine wake it, those of other tests, too: one quiet second is enough, and a daemon
    # that wakes by itself has none.
    assert any(second() <= 1 for _ in range(12))


def test_the_timer_looks_even_when_nobody_reports(netns: Namespace, config_file: Path, folders: Path) -> None:
    config_file.write_text(config_file.read_text() + '[service]\nresync = "1s"\n')
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        connect(netns, 25)
        guard.until(
            lambda: any(row["packets"] for row in json.loads((folders / "run/status.json").read_text())["ports"]),
            "a counter in status.json",
        )


def test_a_network_change_reapplies_within_brackets_only_when_there_is_work(guard: Guard) -> None:
    guard.netns.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
    guard.netns.run("ip", "address", "add", "10.9.9.1/24", "dev", "d0")
    time.sleep(0.8)
    assert not any("RELOADING" in found for found in guard.listen()), "nothing differed"
    # Stop the world, so that the daemon sees the drift and the network change in the same pass.
    guard.signal(signal.SIGSTOP)
    guard.netns.nft("flush ruleset")
    guard.netns.run("ip", "link", "set", "d0", "up")
    time.sleep(2.2)
    guard.signal(signal.SIGCONT)
    guard.logged("rules repaired")
    guard.listen()
    brackets = [next(iter(found)) for found in guard.notified if found.keys() & {"RELOADING", "READY"}]
    assert brackets == ["READY", "RELOADING", "READY"]
    assert "network change" in next(found["STATUS"] for found in guard.notified if "RELOADING" in found)


def test_lost_events_mean_look(guard: Guard, kernel: Nftables) -> None:
    """A storm that overflows the event socket while the daemon sleeps: it looks all the same."""
    before = kernel.snapshot()
    guard.signal(signal.SIGSTOP)
    storm = "".join(f"add rule inet storm c tcp dport {port} counter drop\n" for port in range(1, 4000))
    for _ in range(16):
        guard.netns.nft(f"add table inet storm\nadd chain inet storm c\n{storm}")
        guard.netns.nft("delete table inet storm")
    guard.netns.nft("delete table inet nftguard")
    guard.signal(signal.SIGCONT)
    guard.until(lambda: kernel.snapshot() == before, "the table as it was")
    guard.logged("rules repaired: the table is missing; on a ruleset change")  # nobody known: the event was lost
    assert guard.status()["daemon"]["counts"]["lost"]["ruleset"] >= 1


def test_a_taken_nflog_group_is_told_and_does_not_stop_it(netns: Namespace, config_file: Path, folders: Path) -> None:
    with netns.entered():
        reader = Reader(25)
    try:
        with Guard(netns, config_file, folders) as guard:
            guard.ready()
            guard.logged("another program reads it; set another [log] group")
            assert guard.status()["state"] == "protected"
    finally:
        reader.close()


def test_a_bad_file_at_the_start_is_told_problem_by_problem(netns: Namespace, config_file: Path, folders: Path) -> None:
    config_file.write_text('[[block]]\nname = "a b"\nports = [0]\n[lgo]\n')
    with Guard(netns, config_file, folders) as guard:
        assert guard.process.wait(10) == 78
        assert guard.log().count("error") == 3
        assert "Traceback" not in guard.log()
        assert not any("READY" in found for found in guard.listen())


def test_a_killed_daemon_leaves_the_rules_and_the_next_one_takes_over(
    netns: Namespace, kernel: Nftables, config_file: Path, folders: Path
) -> None:
    with Guard(netns, config_file, folders) as first:
        first.ready()
        connect(netns, 25)
        first.process.kill()
        first.process.wait()
    live = kernel.snapshot()
    assert live is not None
    with Guard(netns, config_file, folders) as second:
        second.ready()
        assert kernel.snapshot() == live, "counters and all"


@pytest.mark.usefixtures("folders")
def test_the_saved_script_protects_before_the_heavy_imports(
    netns: Namespace, kernel: Nftables, config_file: Path
) -> None:
    """Shown by an interpreter that cannot import them at all."""
    assert cli(netns, config_file, "apply").returncode == 0
    netns.nft("flush ruleset")
    block = "import sys; sys.modules['pydantic'] = sys.modules['click'] = sys.modules['structlog'] = None; "
    code = (
        f"{block}sys.argv[1:] = ['--config', {str(config_file)!r}, 'run']; from nftguard.__main__ import main; main()"
    )
    netns.run(sys.executable, "-c", code, check=False)
    assert kernel.snapshot() is not None
    for change in ("config", "drop-in"):
        netns.nft("flush ruleset")
        if change == "config":
            config_file.write_text(config_file.read_text() + "\n")
        else:
            config_file.with_suffix(".d").mkdir()
            (config_file.with_suffix(".d") / "x.toml").write_text('[[block]]\nname = "x"\nports = [1]\n')
        netns.run(sys.executable, "-c", code, check=False)
        assert kernel.snapshot() is None, f"the script no longer fits: {change}"
        assert cli(netns, config_file, "apply").returncode == 0


def test_the_control_socket_is_for_root_alone(guard: Guard, folders: Path) -> None:
    path = folders / "run/control"
    assert path.stat().st_mode & 0o777 == 0o600
    (folders / "run").chmod(0o755)
    path.chmod(0o666)  # even then the peer's credentials are asked for
    fields = {"verb": "remove", "config": str(guard.config), "namespace": guard.namespace}
    request = json.dumps(fields).encode()
    for parent in [*path.parents][:-2]:  # all below /tmp; pytest-xdist has one more
        with suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    code = (
        "import os, socket; os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"s.connect({str(path)!r}); s.settimeout(5)\n"
        f"try:\n s.send({request!r}); print(s.recv(100))\nexcept OSError: print('refused')"
    )
    assert guard.netns.run(sys.executable, "-c", code).stdout.strip() in {"refused", "b''"}
    assert guard.status()["state"] == "protected"


@pytest.mark.parametrize(
    "request_", [b"[" * 60000, b"", b"{", b"[]", b'{"verb": 1, "config": 2}', b'{"verb": "x"}', b"\xff" * 60000]
)
def test_nonsense_on_the_control_socket_is_survived(guard: Guard, folders: Path, request_: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(str(folders / "run/control"))
        sock.send(request_)
        if request_:
            sock.recv(1000)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(20)]
    for client in silent:
        client.connect(str(folders / "run/control"))  # says nothing
    for client in silent:
        client.close()
    assert guard.cli("apply").returncode == 0


def test_a_fight_is_slowed_down_told_once_and_won(guard: Guard, kernel: Nftables) -> None:
    before = kernel.snapshot()
    code = "import nftables, time; n = nftables.Nftables(); end = time.monotonic() + 30\n"
    code += "while time.monotonic() < end: n.cmd('delete table inet nftguard'); time.sleep(.001)"
    foe = guard.netns.popen("/usr/bin/python3", "-c", code, stdout=subprocess.DEVNULL)
    guard.logged("another program keeps changing the rules (python3")
    time.sleep(1)
    foe.kill()
    foe.wait(10)
    guard.until(lambda: kernel.snapshot() == before, "protection when the foe is gone")
    log = guard.log()
    assert log.count("rules repaired") == FIGHT_AFTER
    assert log.count("another program keeps changing the rules (python3") == 1


def test_the_state_folder_being_unwritable_costs_only_the_saved_script(
    netns: Namespace, config_file: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "file").write_text("")
    monkeypatch.setenv("STATE_DIRECTORY", str(folders / "file/state"))
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        assert guard.status()["state"] == "protected"
        guard.signal(signal.SIGHUP)
        guard.ready(2)
        assert guard.log().count("cannot be written: Not a directory") == 1


def test_hostile_packets_are_survived(guard: Guard) -> None:
    """Truncated and odd TCP packets to a blocked port, as a raw socket can make them."""
    with guard.netns.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for options, length in ((5, 20), (15, 8), (5, 13), (6, 14)):
            tcp = struct.pack("!HHIIBBHHH", 1, 25, 0, 0, 0xF0, 2, 0, 0, 0)[:length]
            size = options * 4 + len(tcp)
            header = struct.pack("!BBHHHBBH4s4s", 0x40 | options, 0, size, 1, 0, 64, 6, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
            with suppress(OSError):
                raw.sendto(header + bytes((options - 5) * 4) + tcp, ("127.0.0.1", 0))
    connect(guard.netns, 465)
    guard.logged(":465 from")
    assert guard.process.poll() is None


def test_a_refused_reload_that_meets_a_flush_still_mends(guard: Guard, kernel: Nftables) -> None:
    before = kernel.snapshot()
    guard.signal(signal.SIGSTOP)
    guard.netns.nft("flush ruleset")
    guard.config.write_text("[")
    guard.signal(signal.SIGHUP)
    guard.signal(signal.SIGCONT)
    guard.ready(2)
    assert kernel.snapshot() == before


HOSTILE = {
    "a zero byte in a key": (b'"a\\u0000b" = 1', "nftguard.d/x.toml"),
    "a line break in a key": (b'"a\\nREADY=0" = 1', "nftguard.d/x.toml"),
    "a number beyond all measure": (b"[log]\ngroup = 0x" + b"f" * 5000, "nftguard.d/x.toml"),
    "a table 3,000 deep": (b"[log]\nprefix" + b".a" * 3000 + b" = 1", "nftguard.d/x.toml"),
    "a file name that is no text": (b"[", b"nftguard.d/\xe9.toml"),
}


@pytest.mark.parametrize(("content", "name"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_and_survived(
    guard: Guard, kernel: Nftables, content: bytes, name: str | bytes
) -> None:
    before = kernel.snapshot()
    path = Path(os.fsdecode(os.fsencode(guard.folder) + b"/" + os.fsencode(name)))
    path.parent.mkdir()
    path.write_bytes(content)
    guard.signal(signal.SIGHUP)
    guard.ready(2)
    assert "DEGRADED" in guard.listen()[-1]["STATUS"]
    assert not any(found.get("READY") == "0" for found in guard.notified)
    assert guard.cli("apply").returncode == 78
    path.unlink()
    assert guard.cli("apply").returncode == 0
    assert kernel.snapshot() == before


def test_a_fifo_in_the_place_of_the_file_is_not_waited_for(guard: Guard) -> None:
    guard.config.unlink()
    os.mkfifo(guard.config)
    guard.signal(signal.SIGHUP)
    guard.logged("is not a regular file")
    assert guard.stop() == 0


def test_a_burst_of_one_signal_does_not_hide_another(guard: Guard) -> None:
    guard.signal(signal.SIGSTOP)
    for _ in range(20000):
        guard.signal(signal.SIGHUP)
    guard.signal(signal.SIGTERM)
    guard.signal(signal.SIGCONT)
    assert guard.process.wait(10) == 0


def test_a_stop_in_the_first_moments_lifts_the_rules(
    netns: Namespace, kernel: Nftables, config_file: Path, folders: Path
) -> None:
    """When the saved script is in force already, and the imports are not done."""
    assert cli(netns, config_file, "apply").returncode == 0
    for delay in (0.0, 0.03, 0.1):
        with suppress(AssertionError):
            netns.nft("delete table inet nftguard")
        with Guard(netns, config_file, folders) as guard:
            while kernel.snapshot() is None:
                assert guard.process.poll() is None
            time.sleep(delay)
            assert guard.stop() == 0
        assert kernel.snapshot() is None


def test_the_log_group_can_change_in_the_middle_of_a_flood(guard: Guard) -> None:
    code = "import socket, time\nend = time.monotonic() + 30\nwhile time.monotonic() < end:\n"
    code += " s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 25)); s.close()"
    flood = guard.netns.popen(sys.executable, "-c", code)
    text = guard.config.read_text()
    for group in range(30, 42):
        guard.config.write_text(f"{text}[log]\ngroup = {group}\n")
        assert guard.cli("apply").returncode == 0
        guard.listen()
    flood.kill()
    flood.wait(10)
    assert guard.process.poll() is None


def test_what_another_program_logs_to_our_group_is_not_told(guard: Guard) -> None:
    guard.netns.nft(
        "table inet other { chain c { type filter hook output priority 0; "
        'tcp dport 7777 log prefix "mail" group 25; tcp dport 7778 log prefix "x {y}" group 25; }; }'
    )
    for port in (7777, 7778, 25):
        with suppress(ConnectionRefusedError):
            connect(guard.netns, port)
    guard.logged("127.0.0.1:25 from")
    assert "7777" not in guard.log()
    assert "7778" not in guard.log()


def test_a_host_that_forwards_is_warned_once(netns: Namespace, config_file: Path, folders: Path) -> None:
    netns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        for _ in range(3):
            assert guard.cli("apply").returncode == 0
        told = "what this host routes for others (IPv4): no block has the hook forward"
        assert guard.log().count(told) == 1
        word = json.loads((folders / "run/status.json").read_text())
        assert word["warnings"] == [told]


def test_pause_ends_by_itself(guard: Guard, kernel: Nftables) -> None:
    done = guard.cli("pause", "--for", "1s")
    assert done.returncode == 0
    assert "nothing is blocked until" in done.stdout
    assert kernel.snapshot() is None
    assert guard.status()["daemon"]["suspended"]
    guard.until(lambda: kernel.snapshot() is not None, "the end of the pause")
    guard.until(lambda: guard.listen()[-1].get("STATUS") == "11 tcp ports blocked on output", "a STATUS that says so")
    guard.logged("11 tcp ports blocked on output (end of the pause: ")
    assert "repaired" not in guard.log(), "it was our own doing"
    assert guard.cli("pause", "--for", "soon").returncode == 2


def test_a_pause_that_is_too_long_or_has_no_end_is_refused(guard: Guard, kernel: Nftables, folders: Path) -> None:
    fields = {"verb": "pause", "config": str(guard.config), "namespace": guard.namespace}
    for arguments in ({}, {"seconds": 0}, {"seconds": 86401}, {"seconds": True}):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(5)
            sock.connect(str(folders / "run/control"))
            sock.send(json.dumps(fields | {"arguments": arguments}).encode())
            assert json.loads(sock.recv(1000)) == {"exit": 1, "text": "pause takes 1 to 86400 s"}
    assert kernel.snapshot() is not None


def test_pause_without_a_daemon_is_refused(
    netns: Namespace, config_file: Path, kernel: Nftables, folders: Path
) -> None:
    assert folders.exists()
    assert cli(netns, config_file, "apply").returncode == 0
    done = cli(netns, config_file, "pause")
    assert done.returncode == 69
    assert "nftguard remove" in done.stderr
    assert kernel.snapshot() is not None


def test_a_storm_of_network_events_costs_a_few_passes_and_no_memory(guard: Guard) -> None:
    """100,000 events: addresses, links and routes, default ones among them."""

    def resident() -> int:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{guard.process.pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    def passes() -> int:
        return int(json.loads((guard.folder / "run/status.json").read_text())["daemon"]["passes"])

    guard.netns.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
    guard.netns.run("ip", "address", "add", "10.8.0.1/16", "dev", "d0")
    guard.netns.run("ip", "link", "set", "d0", "up")
    time.sleep(1)
    batch = (
        "address add 10.9.9.9/32 dev d0\nroute add default via 10.8.0.9 dev d0 onlink\nlink set d0 mtu 1400\n"
        "route add 10.99.0.0/16 dev d0\nroute del 10.99.0.0/16\nlink set d0 mtu 1500\n"
        "route del default\naddress del 10.9.9.9/32 dev d0\n"
    ) * 2500
    before, memory, begun = passes(), resident(), time.monotonic()
    for _ in range(5):  # 8 commands, each an event or more
        guard.netns.run("ip", "-batch", "-", input=batch)
    took = time.monotonic() - begun
    time.sleep(2.5)
    assert passes() - before <= took / NETWORK_EVERY + 2
    assert resident() - memory < 4096, "kB"
    assert guard.status()["state"] == "protected"
