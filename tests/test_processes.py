from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nftguard.who import processes
from nftguard.who.processes import Details, Group, Process, Program
from tests.groups import joining

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.netns import Namespace

UID = 4711


@pytest.fixture
def blocked(netns: Namespace) -> Namespace:
    """A namespace in which whoever connects to port 25 waits."""
    netns.nft("table inet t { chain c { type filter hook output priority 0; tcp dport 25 drop; }; }")
    return netns


@pytest.fixture
def start(base: Path, blocked: Namespace) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in the group and the namespace; ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*argv: str, **options: object) -> subprocess.Popen[str]:
        started.append(blocked.popen(*joining(base, *argv), stdout=subprocess.PIPE, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


# Joins, names itself, connects without waiting, says which socket it has, and lives as long as its standard input.
SENDER = """
import json, os, socket, sys
name, uid, stay = sys.argv[1:4]
open("/proc/self/comm", "wb", 0).write(os.fsencode(name) or b"\\0")
if int(uid): os.setresuid(int(uid), int(uid), int(uid))
made = socket.socket(); made.setblocking(False)
try: made.connect(("127.0.0.1", 25))
except BlockingIOError: pass
print(json.dumps([os.getpid(), os.fstat(made.fileno()).st_ino]), flush=True)
if stay == "fork" and os.fork() == 0: open("/proc/self/comm", "w").write("child")
if stay == "threads":
    import threading
    threading.Thread(target=lambda: open("/proc/thread-self/comm", "w").write("thread"), daemon=True).start()
if stay != "gone": sys.stdin.read()
"""


def sender(name: str, uid: int = UID, stay: str = "stay") -> list[str]:
    return [sys.executable, "-S", "-E", "-c", SENDER, name, str(uid), stay]


def told(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The process id and the inode that a sender tells."""
    assert process.stdout
    pid, inode = json.loads(process.stdout.readline())
    return pid, inode


def still_open(netns: Namespace, inode: int) -> Callable[[], bool]:
    def ask() -> bool:
        with netns.entered():
            return f" {inode} " in Path("/proc/thread-self/net/tcp").read_text(encoding="ascii")

    return ask


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def test_the_one_process_of_a_service_is_certain(
    base: Path, blocked: Namespace, start: Callable[..., subprocess.Popen[str]]
) -> None:
    pid, inode = told(start(*sender("ss-server"), stdin=subprocess.PIPE))
    found = processes.of(base)
    assert found.complete
    (process,) = found.processes
    assert (process.pid, process.name, process.uids) == (pid, "ss-server", frozenset({UID}))
    assert str(process) == f"ss-server[{pid}]"
    assert processes.certain(found, UID, still_open(blocked, inode)) == Program("ss-server", process)


def test_of_several_processes_with_one_name_the_program_is_certain(
    base: Path, blocked: Namespace, start: Callable[..., subprocess.Popen[str]]
) -> None:
    inodes = [told(start(*sender("worker"), stdin=subprocess.PIPE))[1] for _ in range(3)]
    found = processes.of(base)
    assert len(found.of(UID)) == 3
    assert processes.certain(found, UID, still_open(blocked, inodes[1])) == Program("worker")


def test_another_users_process_is_no_candidate_but_roots_socket_may_be_anybodys(
    base: Path, blocked: Namespace, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Root's socket is kept by a process that leaves root's identity; nobody else can make it the other way round."""
    _, inode = told(start(*sender("mine"), stdin=subprocess.PIPE))
    start("sleep", "1000")
    until(lambda: len(processes.of(base).processes) == 2, "two processes")
    found = processes.of(base)
    mine = processes.certain(found, UID, still_open(blocked, inode))
    assert mine is not None
    assert mine.name == "mine"
    assert processes.certain(found, 0, still_open(blocked, inode)) is None
    assert processes.certain(found, None, still_open(blocked, inode)) is None


def test_a_shell_is_never_taken_for_the_process_that_it_started_and_that_is_gone(
    base: Path, blocked: Namespace, start: Callable[..., subprocess.Popen[str]]
) -> None:
    command = "while read _; do " + " ".join(f"'{word}'" for word in sender("quick", 0, "gone")) + "; done"
    shell = start("sh", "-c", command, stdin=subprocess.PIPE)
    assert shell.stdin
    named = set()
    for _ in range(40):
        shell.stdin.write("\n")
        shell.stdin.flush()
        pid, inode = told(shell)
        while True:
            found = processes.of(base)
            named.add(processes.certain(found, 0, still_open(blocked, inode)))
            if not Path(f"/proc/{pid}").exists():
                break
        assert processes.certain(processes.of(base), 0, lambda: True), (
            "the shell alone would be named, were it not asked"
        )
    assert named == {None}


def test_with_access_to_descriptors_the_holder_is_exact(
    base: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    start("sleep", "1000")
    pids = [told(start(*sender(name, 0), stdin=subprocess.PIPE)) for name in ("one", "two", "two")]
    found = processes.of(base)
    for (pid, inode), name in zip(pids, ("one", "two", "two"), strict=True):
        program = processes.holder(found, inode)
        assert program is not None
        assert program.process is not None
        assert (program.name, program.process.pid) == (name, pid)
    assert processes.holder(found, 1) is None


def test_a_socket_that_two_programs_share_is_neither_ones(
    base: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    _, inode = told(start(*sender("parent", 0, "fork"), stdin=subprocess.PIPE))
    until(lambda: {one.name for one in processes.of(base).processes} == {"parent", "child"}, "the child")
    assert processes.holder(processes.of(base), inode) is None


def test_without_the_privilege_the_holder_is_not_known_and_all_else_is(
    base: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    pid, inode = told(start(*sender("ss-server", 0), stdin=subprocess.PIPE))
    code = (
        "import pathlib, sys; from nftguard.who import processes as p; g = p.of(pathlib.Path(sys.argv[1]));"
        "print(p.holder(g, int(sys.argv[2])), p.certain(g, 0, lambda: True).name, p.details(g.processes[0]))"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, str(base), str(inode)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"None ss-server Details(exe='', cmdline='{sys.executable} -S -E -c ")
    assert pid


def test_the_main_threads_name_counts(base: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    told(start(*sender("main", 0, "threads"), stdin=subprocess.PIPE))
    assert [one.name for one in processes.of(base).processes] == ["main"]


def test_details_are_those_of_this_very_process(base: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    running = start("sleep", "1000", "0.5")
    until(lambda: [one.name for one in processes.of(base).processes] == ["sleep"], "sleep")
    (process,) = processes.of(base).processes
    parent = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    found = processes.details(process)
    assert found == Details(str(Path("/usr/bin/sleep").resolve()), "sleep 1000 0.5", f"{parent}[{os.getpid()}]")
    other = Process(process.pid, process.name, process.uids, process.started + 1)
    assert processes.details(other) == Details(), "the id was taken by another"
    running.kill()
    running.wait()
    assert processes.details(process) == Details()
    assert processes.of(base).processes == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\nb\x1b[31m", "a?b?[31m"),
        (") S 1 1 (x", ") S 1 1 (x"),
        ("x)\nUid:\t0\t0", "x)?Uid:?0?0"),
        ("a (b.service)", "a (b.service)"),
        (os.fsdecode(b"\xff\xfe\xc5"), "???"),
        ("", ""),
    ],
)
def test_a_hostile_name_is_cleaned_and_forges_no_field(
    base: Path, start: Callable[..., subprocess.Popen[str]], name: str, expected: str
) -> None:
    pid, _ = told(start(*sender(name), stdin=subprocess.PIPE))
    (process,) = processes.of(base).processes
    assert (process.pid, process.name, process.uids) == (pid, expected, frozenset({UID}))


def test_a_hostile_command_line_is_one_bounded_line(base: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    program = start("sh", "-c", "read x; :", "a\nb\x1b[31m'; reboot", "", "x" * 100_000, stdin=subprocess.PIPE)
    lines: list[str] = []

    def reads() -> bool:
        lines[:] = [processes.details(found).cmdline for found in processes.of(base).processes]
        return any("reboot" in line and "cgroup.procs" not in line for line in lines)  # no longer the one that joins

    until(reads, "the shell")
    (line,) = lines
    assert line.startswith("""sh -c 'read x; :' 'a?b?[31m'"'"'; reboot' '' xxx""")
    assert (len(line), line[-1], line.isprintable()) == (256, "…", True)
    assert program.poll() is None


def test_of_too_many_processes_some_are_candidates_and_none_is_certain(base: Path) -> None:
    command = f"i=0; while [ $i -lt {processes.MOST + 3} ]; do sleep 1000 & i=$((i+1)); done; exec sleep 1000"
    subprocess.run(joining(base, "sh", "-c", f"({command}) >/dev/null 2>&1 &"), check=True, timeout=30)
    until(lambda: len((base / "cgroup.procs").read_text().split()) == processes.MOST + 4, "all processes")
    found = processes.of(base)
    assert len(found.processes) == processes.MOST
    assert not found.complete
    assert processes.certain(found, 0, lambda: True) is None


def test_a_group_that_is_gone_or_empty_has_nobody(base: Path) -> None:
    assert processes.of(base) == Group((), True)
    assert processes.of(base / "missing") == Group((), False)
    assert processes.certain(Group((), True), 0, lambda: True) is None


def test_processes_that_cannot_be_seen_make_the_group_incomplete(base: Path) -> None:
    """Those of another process namespace are listed as 0."""
    with subprocess.Popen(joining(base, "sleep", "1000")) as running:
        until(lambda: (base / "cgroup.procs").read_text(), "the process")
        code = "import pathlib, sys; from nftguard.who import processes as p; print(p.of(pathlib.Path(sys.argv[1])))"
        done = subprocess.run(
            ["unshare", "-p", "-f", "--mount-proc", sys.executable, "-c", code, str(base)],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        running.kill()
    assert (done.stdout, done.stderr) == ("Group(processes=(), complete=False)\n", "")


def test_groups_that_change_all_the_time_are_read_without_an_error(base: Path) -> None:
    storm = "while :; do (exec -a x sleep 0) & sleep 0 & done"
    with subprocess.Popen(joining(base, "bash", "-c", storm)) as running:
        for _ in range(200):
            for process in processes.of(base).processes:
                assert re.fullmatch(r"[a-z]+", process.name)
                processes.details(process)
        running.kill()
        (base / "cgroup.kill").write_text("1")
