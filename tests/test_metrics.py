"""Metrics: what the daemon writes for them, the series that are made of it, and the server that tolerates anything."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nftguard import __version__, journal, notify
from nftguard.keeper import Keeper
from nftguard.metrics import page, reading, series
from nftguard.metrics.word import Problem, Word
from nftguard.model import Counter, Hook
from nftguard.pace import Cause
from nftguard.surroundings import Surroundings
from nftguard.who.culprit import Culprit
from nftguard.wire.watch import Change
from tests.fake_kernel import FakeKernel
from tests.guard import Guard, Running, cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.netns import Namespace

CHECKOUT = Path(__file__).parents[1]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
_PORT = 9736


def samples(text: str) -> Series:
    """Read a page as Prometheus would."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    return found[f"nftguard_{name}", frozenset(labels.items())]


def names(found: Series) -> set[str]:
    return {name for name, _ in found}


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def keeper(kernel: FakeKernel, config_file: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """A keeper that has its policy in force, in a kernel of memory."""
    assert folders.exists()
    for name in ("ready", "reloading", "status"):
        monkeypatch.setattr(notify, name, lambda _: None)
    journal.configure(io.StringIO())
    keeper = Keeper(config_file, kernel, Surroundings())
    run(keeper, Cause.START)
    return keeper


@pytest.fixture
def word(folders: Path) -> Path:
    return folders / "run/status.json"


def run(keeper: Keeper, cause: Cause) -> object:
    keeper.pace.wake(cause)
    return keeper.run()


def counted(kernel: FakeKernel, name: str, packets: int, size: int) -> None:
    assert kernel.table
    kernel.table = replace(kernel.table, counters={**kernel.table.counters, name: Counter(name, packets, size)})


# What the daemon writes


def test_a_page_tells_how_things_stand(keeper: Keeper, kernel: FakeKernel, word: Path) -> None:
    counted(kernel, "mail.output.tcp.25", 7, 420)
    run(keeper, Cause.TIMER)
    found = samples(page.text(word))
    assert value(found, "up") == 1
    assert {one: value(found, "status_problem", problem=one) for one in Problem} == dict.fromkeys(Problem, 0)
    states = {state: value(found, "state", state=state) for state in ("protected", "degraded", "unprotected")}
    assert states == {"protected": 1, "degraded": 0, "unprotected": 0}
    assert value(found, "ports_blocked", hook="output", protocol="tcp") == 11
    place = {"block": "mail", "hook": "output", "protocol": "tcp"}
    assert value(found, "blocked_packets_total", **place, port="25") == 7
    assert value(found, "blocked_bytes_total", **place, port="25") == 420
    assert value(found, "blocked_packets_total", **place, port="993") == 0
    assert value(found, "reconciles_total", result="done") == 2
    assert 0 <= time.time() - value(found, "last_reconcile_timestamp_seconds") < 60
    assert value(found, "last_reconcile_duration_seconds") > 0
    assert 0 <= time.time() - value(found, "status_timestamp_seconds") < 60
    python = ".".join(map(str, sys.version_info[:3]))
    assert value(found, "build_info", version=__version__, nft="1.0.6", python=python) == 1


def test_repairs_are_counted_by_what_led_to_them_and_how_long_it_took(
    keeper: Keeper, kernel: FakeKernel, word: Path
) -> None:
    kernel.table = None
    keeper.changed([Change(time.monotonic(), 5, "nft")])
    keeper.run()
    kernel.table = None
    run(keeper, Cause.TIMER)
    found = samples(page.text(word))
    assert value(found, "repairs_total", cause="ruleset") == 1
    assert value(found, "repairs_total", cause="timer") == 1
    assert value(found, "repairs_total", cause="network") == 0
    assert value(found, "repair_gap_seconds_count") == 1, "nobody knows how long the other took"
    assert value(found, "repair_gap_seconds_bucket", le="+Inf") == 1
    assert 0 < value(found, "repair_gap_seconds_sum") < 60


def test_a_page_is_made_anew_once_in_a_while_and_not_for_every_client(
    keeper: Keeper, word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.bulletin.tell()
    monkeypatch.setattr(page, "_LASTS", 60.0)
    asked = page.Page(word)
    first = asked.get("")
    word.unlink()
    assert asked.get("") == first
    monkeypatch.setattr(page, "_LASTS", 0.0)
    assert asked.get("") != first


def test_repairs_in_a_fight_are_counted_all_the_same(keeper: Keeper, kernel: FakeKernel, word: Path) -> None:
    for _ in range(30):
        kernel.table = None
        keeper.changed([Change(time.monotonic(), 5, "foe")])
        keeper.run()
    found = samples(page.text(word))
    assert value(found, "repairs_total", cause="ruleset") == value(found, "repair_gap_seconds_count") == 30


def test_reloads_are_counted_by_their_outcome(keeper: Keeper, config_file: Path, word: Path) -> None:
    text = config_file.read_text()
    for content in (text, "[", text.replace("995", "996")):
        config_file.write_text(content)
        run(keeper, Cause.RELOAD)
    found = samples(page.text(word))
    assert value(found, "reloads_total", result="done") == 2
    assert value(found, "reloads_total", result="refused") == 1


def test_a_reconcile_that_fails_is_counted(keeper: Keeper, kernel: FakeKernel, word: Path) -> None:
    kernel.table, kernel.refusing = None, "out of memory"
    run(keeper, Cause.TIMER)
    found = samples(page.text(word))
    assert value(found, "reconciles_total", result="failed") == 1
    assert value(found, "state", state="unprotected") == 1


def test_what_is_lost_is_counted_by_its_kind(keeper: Keeper, word: Path) -> None:
    keeper.bulletin.lost(3)
    keeper.bulletin.records_dropped = 4
    keeper.bulletin.tally.lost["ruleset"] = 5
    keeper.bulletin.tell()
    found = samples(page.text(word))
    lost = {kind: value(found, "events_lost_total", kind=kind) for kind in series.LOST}
    assert lost == {"ruleset": 5, "network": 0, "attempts": 3, "records": 4}


def test_names_that_others_choose_break_nothing(keeper: Keeper, word: Path) -> None:
    name = 'a"} 1\nnftguard_up 0\n\\.service'
    keeper.bulletin.tally.attempted(Hook.OUTPUT, Culprit(unit=name))
    keeper.bulletin.tell()
    text = page.text(word)
    assert value(samples(text), "attempts_total", hook="output", unit=name) == 1
    assert "\nnftguard_up 0" not in text


def test_while_the_rules_are_lifted_nothing_is_blocked_and_it_says_so(keeper: Keeper, word: Path) -> None:
    keeper.lift("a test")
    keeper.bulletin.suspended = "until 10:00:00"
    keeper.bulletin.tell()
    found = samples(page.text(word))
    assert value(found, "up") == value(found, "suspended") == value(found, "state", state="unprotected") == 1
    assert "nftguard_ports_blocked" not in names(found)


def test_every_metric_and_every_alert_is_in_the_documentation(keeper: Keeper, word: Path) -> None:
    keeper.bulletin.tally.attempted(Hook.OUTPUT, Culprit(unit="a.service"))
    keeper.bulletin.tell()
    text = (CHECKOUT / "docs/monitoring.md").read_text()
    for family in series.families(reading.read(word, time.time())):
        counter = "_total" if family.type == "counter" else ""
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        told = re.findall(rf"^\| .*`{family.name}{counter}(?:{{(.*?)}})?`", text, re.MULTILINE)
        assert any(labels == set(filter(None, found.split(", "))) for found in told), family.name
    alerts = re.findall(r"alert: (\w+)", (CHECKOUT / "contrib/prometheus/nftguard.rules.yml").read_text())
    assert re.findall(r"^\| `(Nftguard\w+)`", text, re.MULTILINE) == alerts


# Between two passes


def test_what_is_counted_between_two_passes_is_told_and_saved(
    keeper: Keeper, kernel: FakeKernel, config_file: Path, word: Path
) -> None:
    passes = keeper.bulletin.passes
    counted(kernel, "mail.output.tcp.25", 7, 420)
    keeper.freshen()
    place = {"block": "mail", "hook": "output", "protocol": "tcp", "port": "25"}
    assert value(samples(page.text(word)), "blocked_packets_total", **place) == 7
    assert keeper.bulletin.passes == passes
    run(keeper, Cause.TIMER)
    successor = Keeper(config_file, kernel, Surroundings())
    assert successor.bulletin.counters["mail.output.tcp.25"].packets == 7


def test_without_news_it_is_told_once_a_minute(keeper: Keeper, word: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keeper.bulletin.tell()
    written: list[float] = []
    before = word.stat().st_mtime_ns
    for _ in range(180):
        now += 1
        assert keeper.bulletin.freshen_at
        if now >= keeper.bulletin.freshen_at:
            keeper.freshen()
            if word.stat().st_mtime_ns != before:
                before = word.stat().st_mtime_ns
                written.append(now)
    assert len(written) == 3


def test_news_of_one_port_does_not_put_off_that_of_another(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    keeper.bulletin.tell()
    due = keeper.bulletin.freshen_at
    now += 5
    keeper.bulletin.tell()
    assert keeper.bulletin.freshen_at == due


def test_totals_do_not_fall_while_the_table_is_away(keeper: Keeper, kernel: FakeKernel, word: Path) -> None:
    counted(kernel, "mail.output.tcp.25", 7, 420)
    keeper.freshen()
    kernel.table = None
    keeper.freshen()
    keeper.bulletin.tell()
    place = {"block": "mail", "hook": "output", "protocol": "tcp", "port": "25"}
    assert value(samples(page.text(word)), "blocked_packets_total", **place) == 7


# What does not count


def damaged(word: Path, how: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(word.read_text())
    word.write_text(json.dumps(how(document)))


def test_without_a_daemon_it_is_down_and_says_why(word: Path) -> None:
    found = samples(page.text(word))
    assert value(found, "up") == 0
    assert value(found, "status_problem", problem="missing") == 1
    assert names(found) == {"nftguard_up", "nftguard_status_problem", "nftguard_status_timestamp_seconds"}


@pytest.mark.usefixtures("keeper")
@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (lambda found: found | {"version": "0.0.1"}, "version"),
        (lambda found: found | {"stale_after": time.time() - 1}, "stale"),
        (lambda _: [], "unreadable"),
        (lambda found: found | {"ports": None}, "unreadable"),
        (lambda found: found | {"ports": [{}]}, "unreadable"),
        (lambda found: found | {"ports": [found["ports"][0] | {"port": "x"}]}, "unreadable"),
        (lambda found: found | {"daemon": None}, "unreadable"),
        (lambda found: found | {"daemon": found["daemon"] | {"counts": {}}}, "unreadable"),
        (lambda found: found | {"at": "now"}, "unreadable"),
        (lambda found: found | {"at": 10**400}, "unreadable"),
        (lambda found: found | {"stale_after": float("nan")}, "stale"),
    ],
)
def test_a_word_that_does_not_count_says_why(word: Path, how: Callable[[dict[str, Any]], object], problem: str) -> None:
    damaged(word, how)
    found = samples(page.text(word))
    assert value(found, "up") == 0
    assert value(found, "status_problem", problem=problem) == 1
    assert "nftguard_state" not in names(found)


def test_any_file_may_stand_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert reading.read(path, 0.0).problem is Problem.MISSING
    for content in (b"", b"\xff", b"[" * 100_000, b'{"version": 1e999}', b"null"):
        path.write_bytes(content)
        assert reading.read(path, 0.0).problem in {Problem.UNREADABLE, Problem.VERSION}
    path.unlink()
    os.mkfifo(path)
    assert reading.read(path, 0.0).problem is Problem.UNREADABLE, "nor is it waited for"
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert reading.read(path, 0.0).problem is Problem.UNREADABLE
    path.unlink()
    path.mkdir()
    assert reading.read(path, 0.0).problem is Problem.UNREADABLE


def test_the_number_of_series_does_not_grow_with_the_policy(keeper: Keeper, word: Path) -> None:
    keeper.bulletin.tell()
    document = json.loads(word.read_text())
    row = document["ports"][0]
    document["ports"] = [row | {"port": 1 + number, "packets": 1, "bytes": 40} for number in range(20_000)]
    found = [sample for family in series.families(Word(document)) for sample in family.samples]
    packets = [sample for sample in found if sample.name == "nftguard_blocked_packets_total"]
    assert len(packets) == series.APART + 1
    assert sum(sample.value for sample in packets) == 20_000
    assert next(sample.value for sample in packets if sample.labels["port"] == "other") == 20_000 - series.APART
    assert next(sample.value for sample in found if sample.name == "nftguard_ports_blocked") == 20_000


# The verb


class Served(Running):
    """`nftguard metrics` in a namespace of its own, where every port is free."""

    def __init__(self, netns: Namespace, word: Path, *listen: str, before: str = "pass") -> None:
        code = f"import sys; from nftguard.__main__ import main; {before}; sys.exit(main())"
        where = [argument for one in listen for argument in ("--listen", one)]
        self.netns = netns
        self.process = netns.popen(
            sys.executable, "-c", code, "metrics", "--status", str(word), *where, stderr=-1, env=os.environ.copy()
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        assert line.startswith("nftguard: metrics are served on "), line

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        assert self.process.stderr
        self.process.stderr.close()

    def connect(self, where: str = "127.0.0.1") -> socket.socket:
        if where.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(10)
            sock.connect(where)
            return sock
        with self.netns.entered():
            return socket.create_connection((where, _PORT), 10)

    def ask(self, question: bytes, where: str = "127.0.0.1") -> tuple[str, str]:
        """Ask; give the status line and the content."""
        with self.connect(where) as sock:
            with contextlib.suppress(ConnectionError):  # it does not read all of what is too long
                sock.sendall(question)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65536):
                    answer += data
        head, _, content = answer.decode().partition("\r\n\r\n")
        return head.partition("\r\n")[0], content

    def scrape(self, where: str = "127.0.0.1") -> Series:
        status, content = self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", where)
        assert status == "HTTP/1.1 200 OK"
        return samples(content)


@pytest.fixture
def served(netns: Namespace, keeper: Keeper, word: Path, tmp_path: Path) -> Iterator[Served]:
    assert keeper
    with Served(netns, word, f"127.0.0.1:{_PORT}", f"[::1]:{_PORT}", f"unix:{tmp_path}/socket") as served:
        yield served


def test_it_serves_over_ipv4_ipv6_and_a_unix_socket_and_reads_anew_each_time(
    served: Served, word: Path, tmp_path: Path
) -> None:
    for where in ("127.0.0.1", "::1", f"{tmp_path}/socket"):
        assert value(served.scrape(where), "up") == 1
    word.unlink()
    end = time.monotonic() + 10
    while value(served.scrape(), "up"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert value(served.scrape(), "status_problem", problem="missing") == 1


def test_it_speaks_openmetrics_to_who_asks_for_it(served: Served) -> None:
    question = b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    assert served.ask(question)[1].endswith("# EOF\n")


def test_there_are_two_formats_whatever_a_client_makes_up(keeper: Keeper, word: Path) -> None:
    keeper.bulletin.tell()
    asked = page.Page(word)
    kind = "application/openmetrics-text"
    for number in ("", ";version=1.0.0", ";version=x", ";version=1.0.7", ";version=9" * 9, ";escaping=dots"):
        assert asked.get(f"{kind}{number}, text/plain")[0] == asked.get(kind)[0]
    for other in ("", "*/*", "text/plain;version=x", "text/plain;version=7.0.0", "\xb2"):
        assert asked.get(other)[0] == asked.get("")[0] != asked.get(kind)[0]


@pytest.mark.parametrize(
    ("question", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET /metrics?name[]=x HTTP/1.0\r\n\r\n", "200 OK"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", "431 Request Header Fields Too Large"),
    ],
)
def test_anything_but_the_one_page_gets_a_short_answer(served: Served, question: bytes, status: str) -> None:
    found, content = served.ask(question)
    assert found in {f"HTTP/1.1 {status}", ""} if status.startswith("431") else found == f"HTTP/1.1 {status}"
    assert "metrics?" in question.decode("latin-1") or len(content) < 100
    assert value(served.scrape(), "up") == 1


def test_clients_that_say_nothing_keep_nobody_out(served: Served) -> None:
    def resident() -> int:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{served.process.pid}/status").read_text())
        assert found
        return int(found[1])

    before = resident()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(served.connect())
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"GET /metrics HTTP/1.1\r\nX: y")
        assert value(served.scrape(), "up") == 1
        assert len(list(Path(f"/proc/{served.process.pid}/fd").iterdir())) < 50
    assert resident() - before < 20_000, "kB"


def test_a_crowd_that_comes_at_once_does_not_use_up_the_descriptors(netns: Namespace, word: Path) -> None:
    before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))"
    with Served(netns, word, f"127.0.0.1:{_PORT}", before=before) as served, contextlib.ExitStack() as stack:
        served.process.send_signal(signal.SIGSTOP)
        with served.netns.entered():
            for _ in range(300):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", _PORT))
        served.process.send_signal(signal.SIGCONT)
        stack.close()
        assert value(served.scrape(), "up") == 0
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) == 0
        assert served.process.stderr
        assert served.process.stderr.read() == ""


def test_a_client_that_takes_too_long_is_let_go(netns: Namespace, keeper: Keeper, word: Path) -> None:
    keeper.bulletin.tell()
    document = json.loads(word.read_text())
    document["daemon"]["counts"]["attempts"] = [
        {"hook": "output", "unit": f"{number}{'x' * 4000}", "attempts": 1} for number in range(2000)
    ]
    word.write_text(json.dumps(document))  # 8 MB: more than sockets hold
    before = "from nftguard.metrics import serve; serve.PATIENCE = 0.5"
    with (
        Served(netns, word, f"127.0.0.1:{_PORT}", before=before) as served,
        served.connect() as silent,
        served.connect() as idle,
    ):
        silent.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert idle.recv(1) == b"", "it never asked"
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := silent.recv(65536):
                got += len(data)
        assert 0 < got < 8_000_000, "it asked, and did not read for too long"


def test_it_ends_in_order_and_takes_its_socket_along(served: Served, tmp_path: Path) -> None:
    with served.connect():
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(10) == 0
    assert served.process.stderr
    assert served.process.stderr.read() == ""
    assert not (tmp_path / "socket").exists()


def test_a_place_that_is_taken_is_refused_in_one_line(served: Served, netns: Namespace, tmp_path: Path) -> None:
    for where in (f"127.0.0.1:{_PORT}", f"unix:{tmp_path}/socket"):
        done = cli(netns, tmp_path / "none", "metrics", "--listen", where)
        assert done.returncode == 1
        assert (
            done.stderr == f"nftguard: cannot listen on {where}: Address already in use; give another with --listen\n"
        )
    assert value(served.scrape(f"{tmp_path}/socket"), "up") == 1


def test_a_socket_that_was_left_behind_is_taken_over_and_a_file_is_not(
    netns: Namespace, keeper: Keeper, word: Path, tmp_path: Path
) -> None:
    assert keeper
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/socket")
    with Served(netns, word, f"unix:{tmp_path}/socket") as served:
        assert value(served.scrape(f"{tmp_path}/socket"), "up") == 1
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o666
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(f"{tmp_path}/busy")
        busy.listen(0)
        waiting.connect(f"{tmp_path}/busy")  # no other finds room
        assert cli(netns, tmp_path / "none", "metrics", "--listen", f"unix:{tmp_path}/busy").returncode == 1
        assert (tmp_path / "busy").exists()
    (tmp_path / "file").write_text("mine")
    done = cli(netns, tmp_path / "none", "metrics", "--listen", f"unix:{tmp_path}/file")
    assert done.returncode == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "where", ["localhost:9736", "9736", "127.0.0.1:", "::1:9736", "127.0.0.1:65536", "unix:socket"]
)
def test_a_place_that_makes_no_sense_is_used_wrongly(netns: Namespace, tmp_path: Path, where: str) -> None:
    done = cli(netns, tmp_path / "none", "metrics", "--listen", where)
    assert done.returncode == 2
    assert repr(where) in done.stderr


def test_without_prometheus_client_one_line_names_the_package(netns: Namespace) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; from nftguard.__main__ import main; sys.exit(main())"
    done = netns.run(sys.executable, "-c", code, "metrics", check=False)
    assert done.returncode == 69
    assert "python3-prometheus-client" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_textfile_is_written_whole_for_everybody_to_read(
    netns: Namespace, keeper: Keeper, word: Path, tmp_path: Path
) -> None:
    assert keeper
    target = tmp_path / "collector/nftguard.prom"
    done = cli(netns, tmp_path / "none", "metrics", "--status", str(word), "--textfile", str(target))
    assert done.returncode == 0
    assert value(samples(target.read_text()), "up") == 1
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["nftguard.prom"]
    printed = cli(netns, tmp_path / "none", "metrics", "--status", str(word), "--textfile", "-")
    assert names(samples(printed.stdout)) == names(samples(target.read_text()))
    both = cli(netns, tmp_path / "none", "metrics", "--textfile", "-", "--listen", "127.0.0.1:1")
    assert both.returncode == 2


# The real daemon


def test_the_daemon_counts_attempts_repairs_and_what_is_not_logged(
    netns: Namespace, config_file: Path, folders: Path, word: Path
) -> None:
    config_file.write_text(config_file.read_text() + '[log]\ntarget = "none"\n')
    hurried = "import sys; del sys.argv[1:4]; import nftguard.bulletin as told; told.FRESHEN = 0.2; "
    hurried += "from nftguard.__main__ import main; main()"
    with Guard(netns, config_file, folders, before=(sys.executable, "-c", hurried)) as guard:
        guard.ready()
        place = {"block": "mail", "hook": "output", "protocol": "tcp", "port": "25"}
        sending = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 25))"
        netns.run(sys.executable, "-S", "-c", sending)

        def packets() -> float:
            # The daemon says READY before its first word is there.
            return samples(page.text(word)).get(("nftguard_blocked_packets_total", frozenset(place.items())), 0)

        guard.until(packets, "the packet that nothing but a counter saw")
        netns.nft("delete table inet nftguard")
        guard.until(lambda: value(samples(page.text(word)), "repairs_total", cause="ruleset"), "the repair")
        found = samples(page.text(word))
        assert value(found, "repair_gap_seconds_count") == 1
        [info] = [labels for name, labels in found if name == "nftguard_build_info"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", dict(info)["nft"])
        assert guard.stop() == 0
    assert value(samples(page.text(word)), "up") == 0
