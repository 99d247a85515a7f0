"""The manual pages: everything is in them, nothing in them is made up, and they are drawn without a complaint."""

from __future__ import annotations

import ast
import re
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import nftguard
from nftguard import bootscript, cli_explain, control, errors, lastgood, status, verify
from nftguard.allowed import book
from nftguard.attempts import alert
from nftguard.attempts.report import Report
from nftguard.cli import cli
from nftguard.config import Allow, Block, Config, Log, Service
from nftguard.events import EVENTS
from nftguard.who.culprit import Culprit

if TYPE_CHECKING:
    from pydantic import BaseModel

SOURCES = Path(nftguard.__file__).parent
ROOT = SOURCES.parent
PROGRAM = (ROOT / "docs/man/nftguard.8.md").read_text()
FILE = (ROOT / "docs/man/nftguard.toml.5.md").read_text()
PAGES = ("nftguard.8", "nftguard.toml.5")


def sections(page: str, mark: str) -> dict[str, str]:
    """What stands below each heading of a level, in one line but for definitions, which begin lines of their own."""
    parts = re.split(rf"^{mark} (.*)\n", page, flags=re.MULTILINE)[1:]
    return {head: text.partition("\n## ")[0] for head, text in zip(parts[::2], parts[1::2], strict=True)}


def definitions(text: str) -> dict[str, str]:
    """What each term of a list means."""
    found = re.findall(r"^(\S.*)\n: ((?:.+\n?)+)", text, flags=re.MULTILINE)
    return {term: " ".join(meaning.split()) for term, meaning in found}


HEADS = sections(PROGRAM, "##")
VERBS = {
    re.split(r"[ \[]", head, maxsplit=2)[1]: text
    for head, text in sections(PROGRAM, "###").items()
    if head.startswith("nftguard ")
}
HEADINGS = {head.split()[1]: head for head in sections(PROGRAM, "###") if head.startswith("nftguard ")}


def options(text: str) -> set[str]:
    """The options that the terms of a text name."""
    return {option for term in definitions(text) for option in re.findall(r"\*\*(--?[a-z-]+)\*\*", term)}


def spelled(command: click.Command) -> set[str]:
    return {word for param in command.params if isinstance(param, click.Option) for word in param.opts}


def codes(text: str) -> set[int]:
    """The exit codes that a text lists."""
    return {int(code) for code in re.findall(r"\*\*(\d+)\*\*", text.partition("Exit status: ")[2])}


# Verbs


def test_there_are_exactly_the_verbs_that_there_are() -> None:
    assert list(VERBS) == list(cli.commands)
    assert options(HEADS["GENERAL OPTIONS"]) == spelled(cli) | {"-h", "--help"}


@pytest.mark.parametrize("verb", cli.commands)
def test_a_verb_has_exactly_its_options_with_their_defaults(verb: str) -> None:
    assert options(VERBS[verb]) == spelled(cli.commands[verb])
    told = definitions(VERBS[verb])
    for param in cli.commands[verb].params:
        if isinstance(param, click.Option) and param.show_default:
            meaning = next(text for term, text in told.items() if param.opts[0] in term)
            assert f"Default: **{param.default}**." in meaning
    named = set(re.findall(r"--[a-z-]+", HEADINGS[verb]))
    assert named <= spelled(cli.commands[verb])
    arguments = [param for param in cli.commands[verb].params if isinstance(param, click.Argument)]
    for argument in arguments:
        assert (argument.metavar or str(argument.name).upper()).strip("[]") in HEADINGS[verb]


def test_every_option_that_is_mentioned_is_one() -> None:
    known = {word for command in (cli, *cli.commands.values()) for word in spelled(command)} | {"--help"}
    others = {"--now", "--direct", "--get-all-rules"}  # of systemctl and firewall-cmd
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", PROGRAM + FILE)) <= known | others


def test_every_verb_that_is_mentioned_is_one() -> None:
    found = set(re.findall(r"(?:^ +|\*\*|&& )nftguard ([a-z]+)", PROGRAM + FILE, flags=re.MULTILINE))
    assert found <= {*cli.commands}


# Exit codes


def test_every_exit_code_is_there_and_no_other() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.NftguardError)
    ]
    used = {kind.exit_code for kind in kinds} | {state.exit_code for state in status.State}
    used |= {status.STALE, verify.UNPROVEN, *cli_explain._EXIT.values(), click.UsageError.exit_code}
    listed = {int(term.strip("*")) for term in definitions(HEADS["EXIT STATUS"])}
    assert listed == used
    for verb, text in VERBS.items():
        assert codes(text), verb
        assert codes(text) <= listed


@pytest.mark.parametrize("verb", cli.commands)
def test_a_verb_has_the_exit_codes_that_its_help_names(verb: str) -> None:
    texts = [cli.commands[verb].help or ""]
    texts += [param.help or "" for param in cli.commands[verb].params if isinstance(param, click.Option)]
    told = {int(code) for text in texts for code in re.findall(r"\bexits? (?:with )?(\d+)", text, flags=re.IGNORECASE)}
    assert told <= codes(VERBS[verb])


# Keys of the configuration

KEYS: dict[str, type[BaseModel]] = {"[[BLOCK]]": Block, "ALLOW": Allow, "[LOG]": Log, "[SERVICE]": Service}


def keys(model: type[BaseModel]) -> dict[str, str]:
    """The keys of a table, and the names of their fields."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def entries(head: str) -> dict[str, str]:
    return {term.split("**")[1]: text for term, text in definitions(sections(FILE, "##")[head]).items()}


def validated(head: str, line: str) -> BaseModel:
    """A table with one line of its own."""
    needed: dict[str, object] = {} if "name =" in line else {"name": "x"}
    needed |= {} if line.startswith("ports =") else {"ports": [1]}
    return KEYS[head].model_validate(tomllib.loads(line) | (needed if head == "[[BLOCK]]" else {}))


@pytest.mark.parametrize("head", KEYS)
def test_every_key_is_there_and_no_other(head: str) -> None:
    assert list(entries(head)) == list(keys(KEYS[head]))


def test_every_table_is_there() -> None:
    assert {head.strip("[]").lower() for head in KEYS} - {"allow"} == set(keys(Config))


@pytest.mark.parametrize(("head", "key"), [(head, key) for head in KEYS for key in keys(KEYS[head])])
def test_a_key_has_its_default_and_an_example_that_is_taken(head: str, key: str) -> None:
    text, field = entries(head)[key], keys(KEYS[head])[key]
    if KEYS[head].model_fields[field].is_required():
        assert "Must be given" in text
    else:
        default = re.search(r"Default: \*\*(.*?)\*\*\.", text)
        assert default
        model = validated(head, f"{key} = {default[1]}")
        assert getattr(model, field) == KEYS[head].model_fields[field].default
    example = re.search(r"Example: \*\*(.*)\*\*$", text)
    assert example
    assert example[1].startswith(f"{key} = ")
    changed = validated(head, example[1])
    assert getattr(changed, field) != KEYS[head].model_fields[field].default


def test_the_examples_are_configurations() -> None:
    text = sections(FILE, "##")["EXAMPLES"]
    for example in re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE):
        found = Config.model_validate(tomllib.loads(re.sub("^    ", "", example, flags=re.MULTILINE)))
        assert found.block


@pytest.mark.parametrize(
    "words",
    [
        ["journal", "kernel", "none"],
        ["drop", "reject", "all", "new", "remove", "keep", "auto", "off", "tcp", "udp", "sctp", "dccp"],
        ["output", "forward", "input", "bridge", "@local"],
    ],
)
def test_every_word_that_a_key_takes_is_there(words: list[str]) -> None:
    assert [word for word in words if f'"{word}"' not in FILE] == []


# The journal


def recorded() -> set[str]:
    """The fields of all records: what the calls that write them name, and the functions that make most of them."""
    found = {"EVENT", "RECORD", *Culprit().lasting(), *Culprit().passing()}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(), args=[ast.Constant(value=str(name))]) if name in EVENTS:
                    found |= {word.arg for word in node.keywords if word.arg}
                case ast.FunctionDef(name="attempt_fields" | "summary_fields" | "record" | "_record"):
                    listed = [inner for inner in ast.walk(node) if isinstance(inner, ast.Dict)]
                    found |= {str(key.value) for one in listed for key in one.keys if isinstance(key, ast.Constant)}
    return {name.upper() for name in found} - {"WHAT", "BY", "TEXT", "HOW"}


def test_every_field_is_there_and_no_other() -> None:
    fields = set(re.findall(r"NFTGUARD_([A-Z_]+[A-Z])", HEADS["JOURNAL FIELDS"] + PROGRAM))
    terms = {
        name
        for head in sections(PROGRAM, "###").values()
        for term in definitions(head)
        for name in re.findall(r"NFTGUARD_([A-Z_]+)", term)
    }
    assert terms == fields == recorded()


def test_every_event_is_there_with_its_id_and_no_other() -> None:
    listed = [re.fullmatch(r"\*\*(\w+)\*\* \(([0-9a-f]{32})\)", term) for term in definitions(HEADS["EVENTS"])]
    assert {found[1]: found[2] for found in listed if found} == {
        name: event.message_id for name, event in EVENTS.items()
    }
    assert all(listed)


# The rest of it


def test_every_signal_is_there_and_no_other() -> None:
    tried = re.findall(r"signal\.(SIG[A-Z]+)\b(?!_)", (SOURCES / "cli_try.py").read_text())
    heeded = {signal.Signals(number).name for number in bootscript.SIGNALS} | set(tried)
    assert set(re.findall(r"SIG[A-Z]+", HEADS["SIGNALS"])) == heeded
    assert {name for term in definitions(HEADS["SIGNALS"]) for name in re.findall(r"SIG[A-Z]+", term)} == heeded


def test_every_unit_is_there_and_no_other() -> None:
    units = {path.name for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".path"}}
    assert {name for term in definitions(HEADS["UNITS"]) for name in re.findall(r"[\w.-]+", term)} == units
    assert set(re.findall(r"nftguard[\w-]*\.(?:service|path)", PROGRAM + FILE)) <= units


def test_every_variable_is_there_and_no_other() -> None:
    text = "".join(path.read_text() for path in SOURCES.rglob("*.py"))
    names = {"SSH_CONNECTION"}  # of other processes
    names |= set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', text))
    names |= set(re.findall(r'"([A-Z_]+)" (?:not )?in os\.environ', text))
    listed = {name for term in definitions(HEADS["ENVIRONMENT"]) for name in re.findall(r"[A-Z_]{3,}", term)}
    assert listed == names


def test_every_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    run, kept = Path(bootscript.run_dir()), Path(bootscript.state_dir())
    files = [
        control.path(),
        book.path(),
        run / alert.NAME,
        kept / bootscript.NAME,
        lastgood.path(),
        run / "status.json",
    ]
    files += [run / "lock", run / "names", kept / "ledger.json", kept / "names.json", kept / "trial"]
    files += [
        Path(bootscript.DEFAULT_CONFIG),
        Path("/run/nftguard-resolver/answers.json"),
        Path("/etc/nftguard.d/alert"),
    ]
    assert [str(file) for file in files if f"*{file}*" not in HEADS["FILES"]] == []


def test_the_keys_of_documents_are_there() -> None:
    told = {
        term.replace("*", ""): set(re.findall(r"[a-z_]+", re.sub(r"\(.*?\)|\. .*", "", text)))
        for term, text in definitions(HEADS["JSON"]).items()
    }
    empty = status.document(status.judge(None, None), None, seen={}, at=0)
    assert told["status"] == set(empty)
    assert told["report"] == set(Report("unit", 0, 1).document())
    assert told["verify"] == set(verify.Findings("", (), ()).document())
    machine = {name for name, command in cli.commands.items() if "--json" in spelled(command)}
    assert {verb for term in told for verb in term.split(", ")} == machine


# How they are drawn


@pytest.fixture(scope="module")
def built() -> Path:
    subprocess.run(["make", "--silent", "man"], cwd=ROOT, check=True, timeout=60)
    return ROOT / "build/man"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_drawn_without_a_complaint_on_80_columns(built: Path, page: str) -> None:
    environment = {"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "MANPAGER": "cat"}
    command = ["man", "--warnings", "-E", "UTF-8", "-l", str(built / page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\u2010" not in done.stdout, "what is to be typed has the minus sign, and is not hyphenated"
    text = {"nftguard.8": PROGRAM, "nftguard.toml.5": FILE}[page]
    assert [word for word in set(re.findall(r"--[a-z-]+|/[a-z./-]{5,}\w", text)) if word not in done.stdout] == []
    groff = ["groff", "-man", "-ww", "-t", "-Tutf8", str(built / page)]
    assert subprocess.run(groff, capture_output=True, text=True, check=True, timeout=60).stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_which_others_have_finds_nothing_wrong(built: Path, page: str) -> None:
    done = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", str(built / page)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = [
        line for line in (done.stdout + done.stderr).splitlines() if "skipping paragraph macro: PP after S" not in line
    ]
    assert found == []


def test_a_page_says_what_it_is_where_apropos_looks(built: Path, tmp_path: Path) -> None:
    for page in PAGES:
        folder = tmp_path / f"man{page[-1]}"
        folder.mkdir()
        shutil.copy(built / page, folder)
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["lexgrog", *(str(built / page) for page in PAGES)], capture_output=True, text=True, check=True, env=environment
    )
    assert "nftguard - block ports with nftables" in done.stdout
    assert "nftguard.toml - what nftguard blocks" in done.stdout
