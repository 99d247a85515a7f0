"""Completion on the command line: in real shells, of real words, and silent where it has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nftguard import complete
from nftguard.cli import cli
from tests.shell import CLEAR, Shell

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "completions"
CONFIG = '[[block]]\nname = "outgoing-mail"\nports = ["@mail", 21, "gopher"]\n'
READY = "ready>"
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        f"PS1=rea''dy'>'; source {SCRIPTS}/nftguard.bash",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        f"PS1=rea''dy'>'; fpath=({SCRIPTS} $fpath); autoload -Uz compinit; compinit -u -D",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the shells are: with a configuration, and with nftguard on the PATH."""
    (tmp_path / "own.toml").write_text(CONFIG)
    (tmp_path / "own.d").mkdir()
    (tmp_path / "own.d/more.toml").write_text('[[block]]\nname = "web-too"\nports = [80]\n')
    (tmp_path / "old-rules").write_text("")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8"}


def said_by(argv: list[str], folder: Path, **more: str) -> list[str]:
    """The lines that a command prints, which has nothing to complain of."""
    done = subprocess.run(
        argv,
        env=environment(folder) | more,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def words(folder: Path, line: str, **more: str) -> list[str]:
    """What fits behind a line, as nftguard itself tells a shell."""
    asked = {
        "_NFTGUARD_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
    }
    said = said_by([sys.executable, "-m", "nftguard"], folder, **asked, **more)
    return [word.partition(",")[2] for word in said if word]


TYPED = [
    ("nftguard expl", "ain "),
    ("nftguard allow @mail-s", "ubmission "),
    ("nftguard --config own.toml allow goph", "er "),
    ("nftguard --config own.toml status web", "-too "),
    ("nftguard --config own.toml report --block ou", "tgoing-mail "),
    ("nftguard explain tcp 203.0.113.7:goph", "er "),
    ("nftguard report --by=us", "er "),
    ("nftguard allow 25 --user roo", "t "),
    ("nftguard --config own.t", "oml "),
    ("nftguard import old", "-rules "),
    ("nftguard try own.t", "oml "),
]


@pytest.mark.parametrize("name", SHELLS)
def test_a_real_shell_completes_what_is_typed(folder: Path, name: str) -> None:
    argv, setup = SHELLS[name]
    with Shell(argv, environment(folder), str(folder)) as shell:
        shell.say(f"{setup}\n")
        shell.hear(lambda shown: READY in shown.rpartition("\n")[2])
        for typed, rest in TYPED:
            shell.say(f"{typed}\t")
            shell.hear(lambda shown, rest=rest: shown.replace("\a", "").endswith(rest))  # type: ignore[misc]
            shell.say(f"{CLEAR}:\n")
            shell.hear(lambda shown: "\n" in shown and READY in shown.rpartition("\n")[2])


def test_fish_completes_what_is_typed(folder: Path) -> None:
    script = "; ".join([f"source {SCRIPTS}/nftguard.fish", *(f"complete -C '{typed}'" for typed, _ in TYPED)])
    found = [line.partition("\t")[0] for line in said_by(["fish", "--no-config", "-c", script], folder)]
    assert found == [(typed + rest).split()[-1] for typed, rest in TYPED]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("nftguard ", {"check", "status", "metrics"}),
        ("nftguard --config own.toml status ", {"outgoing-mail", "web-too"}),
        ("nftguard --config own.toml allow ", {"@mail", "21", "gopher", "80", "@smtp"}),
        ("nftguard --config own.toml deny 2", {"21"}),
        ("nftguard allow s", {"ssh", "smtp"}),
        ("nftguard explain ", {"tcp", "udp"}),
        ("nftguard --config own.toml explain tcp 192.0.2.1:", {"192.0.2.1:21", "192.0.2.1:gopher"}),
        ("nftguard explain tcp [2001:db8::1]:smt", {"[2001:db8::1]:smtp"}),
        ("nftguard explain tcp 192.0.2.1:25 --iface l", {"lo"}),
        ("nftguard presets ", {"mail", "irc"}),
        ("nftguard presets @i", {"@irc", "@iot-worms"}),
        ("nftguard allow 25 --for ", {"30m"}),
        ("nftguard pause --for 15", {"15s", "15m", "15h", "15d"}),
        ("nftguard report --since ", {"yesterday"}),
        ("nftguard report --by ", {"program", "client"}),
        ("nftguard allow 25 --group ro", {"root"}),
        ("nftguard allow 25 --to @", {"@local"}),
    ],
)
def test_what_is_asked_for_is_known(folder: Path, line: str, some: set[str]) -> None:
    found = words(folder, line)
    assert some <= set(found)
    last = "" if line.endswith(" ") else line.split()[-1]
    assert all(word.startswith(last) for word in found)


@pytest.mark.parametrize(
    "line",
    [
        "nftguard explain tcp 192.0.2.1",
        "nftguard explain tcp 2001:db8::",
        "nftguard allow 25 --to 1",
    ],
)
def test_nothing_is_made_up(folder: Path, line: str) -> None:
    assert words(folder, line) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('block = 7\n[log]\ntarget = "', ["web-too"]),
        ("block = 7\n", []),
        ("\x00\xff", ["web-too"]),
        ('[[block]]\nname = "\\u001b[2J"\nports = 5\n[[block]]\nname = ["a"]\n', ["web-too"]),
        ("[[block]]\nports = " + "[" * 5000 + "]" * 5000, ["web-too"]),
    ],
)
def test_a_broken_file_completes_nothing_and_says_nothing_and_the_others_count(
    folder: Path, text: str, left: list[str]
) -> None:
    (folder / "own.toml").write_text(text, encoding="latin-1")
    assert words(folder, "nftguard --config own.toml status ") == left
    found = words(folder, "nftguard --config own.toml allow ")
    assert all(word.isprintable() for word in found)
    assert words(folder, "nftguard --config nosuch.toml status ") == []
    assert words(folder, "nftguard --config /dev/zero status ") == []


def test_a_configuration_that_may_not_be_read_completes_nothing_and_says_nothing(folder: Path) -> None:
    (folder / "own.toml").chmod(0)
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
    asked = {"_NFTGUARD_COMPLETE": "bash_complete", "COMP_WORDS": f"nftguard --config {folder}/own.toml status "}
    done = subprocess.run(
        [*become, sys.executable, "-m", "nftguard"],
        env=environment(folder) | asked | {"COMP_CWORD": "4"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd="/",
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_units_are_those_that_run_or_have_a_file_if_their_names_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, files = tmp_path / "running", tmp_path / "files"
    for name in ("invocation:run-1.scope", "invocation:ssh.service", "invocation:x;\x1b[2J.service"):
        (running / name).mkdir(parents=True)
    for name in ("ssh.service", "web.service", "getty@.service", "notes.txt", "a b.service"):
        (files / name).mkdir(parents=True)
    monkeypatch.setattr(complete, "RUNNING", running)
    monkeypatch.setattr(complete, "UNITS", (files, tmp_path / "none"))
    found = complete.units(click.Context(cli), click.Argument(["unit"]), "")
    assert [item.value for item in found] == ["run-1.scope", "ssh.service", "web.service"]


def test_nothing_heavy_is_imported(folder: Path) -> None:
    code = """
import sys
from contextlib import suppress
from nftguard.__main__ import main
with suppress(SystemExit):
    main()
print(*(name for name in ("pydantic", "structlog", "nftables", "dns", "systemd", "asyncio") if name in sys.modules))
"""
    for line in ("nftguard --config own.toml status ", "nftguard --config own.toml allow s"):
        asked = {"_NFTGUARD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "4"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(folder) | asked,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.splitlines()[0].startswith("plain,")
        assert done.stdout.splitlines()[-1] == ""


def test_without_nftguard_the_scripts_say_nothing(folder: Path) -> None:
    """As on a host where it was removed and a shell goes on."""
    env = environment(folder) | {"PATH": "/usr/bin:/bin"}
    line = "nftguard status "
    bash = f"source {SCRIPTS}/nftguard.bash; COMP_LINE='{line}' COMP_POINT={len(line)}; _nftguard no-such-command"
    fish = f"source {SCRIPTS}/nftguard.fish; complete -C '{line}'"
    for argv in (["bash", "--norc", "-c", bash], ["fish", "--no-config", "-c", fish]):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr) == ("", "")


def test_a_word_with_an_at_sign_within_is_completed_as_bash_sees_it(folder: Path) -> None:
    """Bash takes @tty1.service for a word."""
    line = "nftguard allow 25 --unit getty@tt"
    tool = folder / "fake"
    tool.write_text("#!/bin/sh\necho plain,getty@tty1.service\n")
    tool.chmod(0o755)
    code = f"source {SCRIPTS}/nftguard.bash; COMP_WORDBREAKS+='@'; COMP_LINE='{line}' COMP_POINT={len(line)}"
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{code}; _nftguard {tool}; printf '%s\\n' \"${{COMPREPLY[@]}}\""],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("@tty1.service\n", "")
