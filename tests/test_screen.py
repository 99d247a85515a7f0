"""What verbs print: fit to a terminal of 80 columns, whole and plain in a pipe, documents for machines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nftguard import screen
from nftguard.attempts.records import Record
from nftguard.cli import cli as command
from nftguard.cli_records import _lines
from nftguard.look import PIPE, Look, Role, columns
from tests.guard import PATIENCE, Guard, cli

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns import Namespace

pytestmark = pytest.mark.usefixtures("folders")
SGR = re.compile(r"\x1b\[[0-9;]*m")
LONG = "a-block-with-as-long-a-name-as-32"[:32]
ODD = f"""
[[block]]
name = "{LONG}"
ports = [25, "1000-2000"]
hooks = ["output", "forward", "input"]
protocols = ["tcp", "udp"]
allow = {{ units = ["{"very-" * 30}long.service"], to = ["2001:db8:1111:2222:3333:4444:5555:0/112", "a.example"] }}
[log]
target = "kernel"
"""
MANY = f'[[block]]\nname = "big"\nports = {[*range(1, 20001, 2)]}\n'


def on_terminal(netns: Namespace, config: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a verb to its end on a terminal of 80 columns, both its stdout and its stderr."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    clean = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "TERM"}}
    argv = (sys.executable, "-m", "nftguard", "--config", str(config), *arguments)
    told = b""
    with netns.popen(*argv, stdout=slave, stderr=slave, env=clean | {"TERM": "xterm"} | environment) as process:
        os.close(slave)
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while part := os.read(master, 1 << 16):
                told += part
        process.wait(PATIENCE)
    os.close(master)
    return process.returncode, told.decode().replace("\r\n", "\n")


def squeezed(text: str) -> str:
    """A text without all that folding changes."""
    return re.sub(r"[\s\\#]", "", SGR.sub("", text))


def left(text: str) -> str:
    """What a terminal shows in the end: progress, where a busy machine took long, is covered."""
    return text.rpartition("\r")[2]


def fits(text: str) -> bool:
    plain = SGR.sub("", left(text))
    return all(line.isprintable() and columns(line) <= 80 for line in plain.split("\n"))


BEFORE = [
    ("check",),
    ("plan",),
    ("status",),
    ("pause",),
    ("allow", "25", "--user", "root", "--for", "1m"),
    ("presets",),
]
AFTER = [
    ("apply",),
    ("status",),
    ("status", LONG),
    ("verify",),
    ("explain", "tcp", "[2001:db8:1111:2222:3333:4444:5555:6666]:25"),
    ("explain", "udp", "203.0.113.7:1500", "--in", "docker0", "--iface", "eth0"),
]


def test_every_verb_fits_80_columns_and_is_whole_in_a_pipe(netns: Namespace, config_file: Path) -> None:
    config_file.write_text(ODD)

    def compare(*verb: str) -> None:
        code, told = on_terminal(netns, config_file, *verb)
        assert fits(told), (verb, told)
        piped = cli(netns, config_file, *verb)
        assert piped.returncode == code
        assert "\x1b" not in piped.stdout + piped.stderr, verb
        # Numbers differ, of what was counted and how long it took; a narrow table names a block once for all its rows.
        one, other = (
            re.sub(f"{LONG}|BLOCK|[0-9]", "", squeezed(text)) for text in (left(told), piped.stderr + piped.stdout)
        )
        assert sorted(one) == sorted(other), verb

    for verb in BEFORE:
        compare(*verb)
    assert fits(on_terminal(netns, config_file, "apply")[1])
    for verb in AFTER:
        compare(*verb)
    assert fits(on_terminal(netns, config_file, "remove")[1])


def test_ten_thousand_ports_do_not_fill_a_terminal_and_are_all_there_in_a_pipe(
    netns: Namespace, config_file: Path
) -> None:
    config_file.write_text(MANY)
    code, told = on_terminal(netns, config_file, "plan")
    assert (code, fits(told)) == (0, True)
    script = re.sub(r"(?m)^#.*\n", "", SGR.sub("", told))
    assert max(map(len, script.splitlines())) <= 80
    netns.nft(script)  # folded, it is an nft script all the same
    assert cli(netns, config_file, "plan", "--exit-code").stdout == ""
    code, told = on_terminal(netns, config_file, "status")
    assert (code, fits(told)) == (0, True)
    assert "and 10,000 ports without a packet (--all lists them)" in told
    assert told.count("\n") < 10  # progress stays in its line
    assert len(on_terminal(netns, config_file, "status", "--all")[1].splitlines()) > 10000
    assert len(cli(netns, config_file, "status").stdout.splitlines()) > 10000
    netns.run("nft", "flush", "map", "inet", "nftguard", "output.tcp")
    told = on_terminal(netns, config_file, "status")[1]
    assert "  and 9,950 more reasons (--all lists them)\n" in told
    assert cli(netns, config_file, "status").stdout.count("lacks port") == 10000


def test_there_are_colours_on_a_terminal_alone_and_not_where_nobody_wants_them(
    netns: Namespace, config_file: Path
) -> None:
    red = on_terminal(netns, config_file, "status")[1]
    assert red.startswith("\x1b[1;31munprotected\x1b[0m: nothing is blocked\n")
    cli(netns, config_file, "apply")
    assert on_terminal(netns, config_file, "status")[1].startswith("\x1b[32mprotected\x1b[0m: 11 tcp ports")
    assert "\x1b[1mBLOCK " in on_terminal(netns, config_file, "status")[1]
    blocked = on_terminal(netns, config_file, "explain", "tcp", "203.0.113.7:25")[1]
    assert blocked.startswith("\x1b[1;31mblocked\x1b[0m: tcp")
    assert on_terminal(netns, config_file, "explain", "tcp", "203.0.113.7:80")[1].startswith("\x1b[32mpasses\x1b[0m: ")
    config_file.write_text(config_file.read_text().replace("25, ", "26, "))
    plan = on_terminal(netns, config_file, "plan")[1]
    assert "\x1b[32madd element inet nftguard output.tcp { 26" in plan
    assert "\x1b[31mdelete element inet nftguard output.tcp { 25 }" in plan
    assert on_terminal(netns, config_file, "status")[1].startswith("\x1b[33mdegraded\x1b[0m: 11 tcp ports")
    assert "\x1b[1;31mFAILED\x1b[0m   rules: " in on_terminal(netns, config_file, "verify")[1]
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        for verb in ("status", "plan"):
            assert "\x1b" not in on_terminal(netns, config_file, verb, **plain)[1]
    assert "\x1b[33m" in on_terminal(netns, config_file, "status", NO_COLOR="")[1], "an empty one says nothing"


def test_no_name_commands_a_terminal(netns: Namespace, config_file: Path) -> None:
    hostile = "\\u001b]0;owned\\u0007\\u001b[2J\\u202e"
    block = f'[[block]]\nname = "{hostile}"\nports = ["{hostile}"]\n"{hostile}" = 1\n'
    config_file.write_text(f'{block}[log]\n"a\\nb" = 1\n')
    for verb in ("check", "plan", "apply", "status"):
        assert fits(on_terminal(netns, config_file, verb)[1]), verb
        piped = cli(netns, config_file, verb)
        assert "\x1b" not in piped.stderr + piped.stdout
    bad = config_file.with_name("\x1b[31mred.toml")
    assert fits(on_terminal(netns, bad, "check")[1])
    code, told = on_terminal(netns, config_file, "check", "--json")
    assert code == 78
    assert "\x1b" not in told


# For machines


def document(netns: Namespace, config: Path, *verb: str) -> tuple[int, dict[str, Any]]:
    done = cli(netns, config, *verb, "--json")
    assert done.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def test_each_verb_that_a_machine_reads_has_a_document(netns: Namespace, config_file: Path, folders: Path) -> None:
    summary = "11 tcp ports blocked on output"
    assert document(netns, config_file, "check") == (
        0, {"valid": True, "kernel_asked": True, "summary": summary, "warnings": [], "problems": []},
    )  # fmt: skip
    code, plan = document(netns, config_file, "plan", "--exit-code")
    assert (code, plan["changes"] > 0, plan["warnings"]) == (1, True, [])
    assert plan["found"] == ["the table is missing"]
    netns.nft(plan["script"])
    assert document(netns, config_file, "plan") == (0, {"changes": 0, "found": [], "script": "", "warnings": []})
    done = {"done": True, "exit": 0, "warnings": []}
    assert document(netns, config_file, "apply") == (0, {**done, "text": f"{summary} (already in force)"})
    assert document(netns, config_file, "status", "mail")[1]["state"] == "protected"
    assert document(netns, config_file, "explain", "tcp", "192.0.2.7:25")[1]["verdict"] == "blocked"
    assert document(netns, config_file, "remove") == (0, {**done, "text": "rules lifted: nothing is blocked"})
    for verb in (("pause",), ("allow", "25", "--anyone", "--for", "1m"), ("deny", "--all")):
        code, found = document(netns, config_file, *verb)
        assert (code, found["exit"], found["problems"]) == (69, 69, [])
        assert found["error"].startswith("no daemon is running")
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        code, found = document(netns, config_file, "allow", "25", "--anyone", "--for", "1m")
        assert (code, found["done"]) == (0, True)
        assert re.match(r"allowed until \S+ \S+: tcp/25 on output for anyone", found["text"])
        assert document(netns, config_file, "deny", "26")[1]["done"] is False
        assert document(netns, config_file, "deny", "--all")[0] == 0
        assert document(netns, config_file, "apply")[1]["text"].startswith(summary)
        assert document(netns, config_file, "pause", "--for", "1h")[0] == 0
        assert document(netns, config_file, "status")[0] == 2


@pytest.mark.parametrize("daemon", [False, True])
def test_a_refused_configuration_is_a_document_with_every_problem(
    netns: Namespace, config_file: Path, folders: Path, daemon: bool
) -> None:
    with contextlib.ExitStack() as stack:
        if daemon:
            guard = stack.enter_context(Guard(netns, config_file, folders))
            guard.ready()
        config_file.write_text('[[block]]\nname = "a b"\nports = [99999]\n')
        for verb in ("check", "plan", "apply"):
            code, found = document(netns, config_file, verb)
            assert (code, found["exit"]) == (78, 78)
            assert [(one["file"], one["key"]) for one in found["problems"]] == [
                (str(config_file), "block[0].name"),
                (str(config_file), "block[0].ports[0]"),
            ]
            assert found["problems"][1]["message"] == "port 99999 is out of range; ports are 1 to 65535"
            assert found["error"] in cli(netns, config_file, verb).stderr


def test_a_block_that_is_not_there_has_no_status(netns: Namespace, config_file: Path) -> None:
    cli(netns, config_file, "apply")
    done = cli(netns, config_file, "status", "mial")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nftguard: no block 'mial' is in force; there is mail\n"
    assert cli(netns, config_file, "status", "mail").stdout == cli(netns, config_file, "status").stdout


def test_every_verb_says_what_it_does_on_80_columns() -> None:
    for verb in [[], *([name] for name in command.commands)]:
        told = CliRunner().invoke(command, [*verb, "--help"], terminal_width=80).output
        assert max(map(len, told.splitlines())) <= 80, verb


# That something takes a while


@pytest.mark.parametrize("terminal", [True, False])
def test_a_wait_is_shown_on_a_terminal_alone_and_leaves_nothing_behind(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = os.openpty() if terminal else os.pipe()
    monkeypatch.setattr(screen, "PATIENCE", 0.0)
    told = b""
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with screen.Wait("trying the ports") as wait:
            wait.step(12, 4000)
            assert wait._thread.is_alive() is terminal
            end = time.monotonic() + PATIENCE
            while terminal and b"12 of 4,000, " not in told:
                assert time.monotonic() < end, told
                told += os.read(master, 4096)
    os.set_blocking(master, False)
    with contextlib.suppress(OSError):  # the end of what was written
        while data := os.read(master, 65536):
            told += data
    os.close(master)
    assert (b"\rnftguard: trying the ports ... 12 of 4,000, " in told) is terminal
    assert told == b"" or re.search(rb"\r +\r$", told), "it is covered in the end"


def test_what_is_quick_shows_no_wait(netns: Namespace, config_file: Path) -> None:
    assert "..." not in on_terminal(netns, config_file, "apply")[1]


# The pieces


@given(st.text(), st.integers(20, 100), st.integers(0, 30))
def test_a_folded_line_fits_and_loses_nothing(text: str, width: int, hang: int) -> None:
    lines = Look(width).fold(text, hang)
    assert all(columns(line) <= width and line.isprintable() for line in lines)
    assert squeezed("".join(lines)) == squeezed("".join(one if one.isprintable() else "?" for one in text))


def test_later_lines_are_indented_more_than_the_first() -> None:
    assert Look(20).fold("  - one two three four five") == ["  - one two three", "    four five"]
    assert Look(20).fold("a" * 30) == ["a" * 20, "  " + "a" * 10]
    assert PIPE.fold("a " * 99) == ["a " * 99]


def test_wide_letters_take_two_columns() -> None:
    assert Look(21).fold("日" * 12) == ["日" * 10, "  日日"]


def test_a_folded_script_keeps_what_is_quoted() -> None:
    rule = 'add rule inet nftguard x log prefix "NFTGUARD a b c d e f g h: " level info'
    lines = Look(40).fold_script(rule)
    assert lines == [
        "add rule inet nftguard x log prefix \\",
        '    "NFTGUARD a b c d e f g h: " level \\',
        "    info",
    ]


def test_a_word_is_painted_where_there_are_colours() -> None:
    assert Look(80, colours=True).lead(["ok: x", "y"], "ok", Role.GOOD) == ["\x1b[32mok\x1b[0m: x", "y"]
    assert PIPE.paint("ok", Role.BAD) == "ok"


def test_a_record_takes_several_lines_of_which_only_the_first_begins_with_a_time() -> None:
    message = b"blocked tcp 203.0.113.7:25 from a (b.service); very likely for its client 198.51.100.4"
    record = Record(time.time(), {"NFTGUARD_EVENT": b"blocked", "MESSAGE": message})
    first, second = _lines(record, Look(60))
    assert re.fullmatch(r"\d\d:\d\d:\d\d blocked tcp 203.0.113.7:25 from a \(b.service\); very", first)
    assert second == "         likely for its client 198.51.100.4"
    assert _lines(record, PIPE)[0].endswith(message.decode())
    found = Record(time.time(), {"NFTGUARD_EVENT": b"fought", "MESSAGE": b"x"})
    assert _lines(found, Look(60, colours=True))[0].startswith("\x1b[1;31m")


def test_a_stream_that_is_no_terminal_gets_lines_as_they_are() -> None:
    assert screen.look(io.StringIO()) == PIPE
