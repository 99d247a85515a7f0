"""The documentation: its links, its configurations, and no command in it that nobody runs; and what runs it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nftguard import config
from nftguard.cli import cli
from nftguard.errors import ConfigError
from tests.boot import console, docs

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = '[[block]]\nname = "another"\nports = [25]\n'
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def prose(page: Path) -> str:
    """Give a page without its blocks and comments."""
    text = re.sub(r"^<!--.*?-->\n", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """List what can be linked to in a page, as GitHub makes it of a heading."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pages
def test_no_command_escapes(page: Path) -> None:
    escaped = []
    for block in docs.blocks(page.read_text(encoding="utf-8")):
        where = f"line {block.line}: a block {block.kind!r}"
        if block.kind in {"console", "toml", "json", "run", "until", "machine"} or "file" in block.notes:
            continue
        if block.kind == "text" and not any(re.match(r"[#$>] |sudo |nftguard ", line) for line in block.body):
            continue
        if not block.notes.get("not run"):
            escaped.append(where)
    lines = prose(page).splitlines()
    escaped += [
        f"indented as code: {line}"
        for before, line in zip(["", *lines], lines, strict=False)
        if line.startswith(("    ", "\t")) and not before.strip()
    ]
    assert escaped == []


@pages
def test_configurations_are_valid(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "nftguard.toml"
    for block in docs.blocks(page.read_text(encoding="utf-8")):
        text = "\n".join(block.body)
        if block.kind == "json":
            json.loads(text)
        if block.kind != "toml":
            continue
        path.write_text(text if "[[block]]" in text else BLOCK + text, encoding="utf-8")
        if "refused" in block.notes:
            with pytest.raises(ConfigError):
                config.load(path)
        else:
            config.load(path)


@pages
def test_verbs_and_options_in_the_prose_exist(page: Path) -> None:
    wrong = []
    for text in re.findall(r"`nftguard ([a-z][^`]*)`", prose(page)):
        verb, *words = shlex.split(text)
        command = cli.commands.get(verb)
        known = {name for option in command.params for name in option.opts} | {"--help"} if command else set()
        options = {word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 2}
        if command is None or options - known:
            wrong.append(text)
    assert wrong == []


def test_every_verb_is_in_the_readme() -> None:
    table = "".join(line for line in prose(ROOT / "README.md").splitlines() if line.startswith("| `"))
    assert [name for name, verb in cli.commands.items() if not verb.hidden and f"`{name}" not in table] == []


def test_the_readme_names_the_verbs_that_print_no_json() -> None:
    [named] = re.findall(r"All but (.*?) take `--json`", prose(ROOT / "README.md").replace("\n", " "))
    without = {
        name for name, verb in cli.commands.items() if "--json" not in {opt for one in verb.params for opt in one.opts}
    }
    assert set(re.findall(r"`([a-z]+)`", named)) == without


def test_every_key_is_on_the_page_of_the_configuration() -> None:
    text = prose(ROOT / "docs/configuration.md")
    models = (config.Block, config.Log, config.Service, config.Allow)
    keys = [field.alias or name for model in models for name, field in model.model_fields.items()]
    assert [key for key in keys if f"`{key}`" not in text] == []


# What runs the pages


class Here:
    """A console on this system: every command is this user's."""

    release = "debian12"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, command: str, *, root: bool) -> tuple[int, str]:  # noqa: ARG002 - Console's signature
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, text=True, capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def talk(
        self,
        command: str,
        *,
        root: bool,  # noqa: ARG002 - Console's signature
        typed: str | None,
        enough: Callable[[str], bool],
    ) -> tuple[int, str]:
        pipe = subprocess.PIPE
        with subprocess.Popen(["bash", "-c", f"exec {command}"], stdin=pipe, stdout=pipe, text=True) as process:
            return console.talk(process, typed, enough)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text, encoding="utf-8")


@pytest.fixture
def differing(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a page that is one console block, after some notes; give the reasons for what differs."""

    def run(*lines: str, notes: str = "") -> list[str]:
        page = "\n".join([notes, "```console", *lines, "```"])
        return [one.why for one in docs.run(page, Here(tmp_path))]

    return run


def test_a_page_that_is_right_is_found_right(differing: Any) -> None:
    assert differing("# echo one; echo two >&2", "one", "two", "$ true", "# printf 'a  b\\n'", "a b") == []
    assert differing("# cat <<'END'", "> one", ">   two", "> END", "one", "  two") == []


@pytest.mark.parametrize(
    "lines",
    [
        ("# echo one", "two"),
        ("# echo one",),
        ("# true", "one"),
        ("# echo one; echo two", "one"),
        ("# echo 11 tcp ports", "12 tcp ports"),
        ("# echo 0 packets", "3 packets"),
        ("# echo from 192.0.2.1:25", "from 192.0.2.2:25"),
    ],
)
def test_another_output_is_found(differing: Any, lines: tuple[str, ...]) -> None:
    assert differing(*lines) == ["printed something else"]


def test_a_wrong_exit_code_and_a_command_that_is_not_there_are_found(differing: Any) -> None:
    assert differing("# false") == ["exit code 1, not 0"]
    assert differing("# no-such-command", "…") == ["exit code 127, not 0"]
    assert differing("# true", notes="<!-- exit: 1 -->") == ["exit code 0, not 1"]
    assert differing("# true", "# exit 3", "# exit 4", notes="<!-- exit: 3 4 -->") == []
    assert differing("# exit 3", "# true", notes="<!-- exit: 3 -->") == ["exit code 3, not 0", "exit code 0, not 3"]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("at 2026-11-24 18:35:31", "at 2027-01-02 03:04:05"),
        ("Nov 24 18:35:30 machine nftguard[76]: up", "Jan  2 03:04:05 machine nftguard[4711]: up"),
        ("mended 1.9 ms after", "mended 0.2 s after"),
        ("changed by nft (process 19)", "changed by nft (process 20000)"),
        ("3 packets to tcp 25", "1 packet to tcp 25"),
        ("mail   output  tcp  25  2  120  1 s ago", "mail output tcp 25 13 1080 5 min ago"),
        ("mended 1.9 ms after it\n  was seen", "mended 120.9 ms after\n  it was seen"),
        ("     2      -  webmail.service\n     at 18:35:29", "     2      7  webmail.service\n     at 18:35:30"),
        ("nftguard 0.1.0", "nftguard 1.12.3"),
        ('{"at": 1795545237.37}', '{"at": 1800000000.123456}'),
    ],
)
def test_what_is_never_the_same_twice_matches_by_its_shape(shown: str, printed: str) -> None:
    assert docs.matches(shown.splitlines(), f"{printed}\n")


def test_an_ellipsis_stands_for_the_rest_of_a_line_or_for_lines() -> None:
    assert docs.matches(["a…", "b"], "a and more\nb\n")
    assert docs.matches(["a", "…", "b"], "a\nb\n")
    assert docs.matches(["…", "b"], "1\n2\nb\n")
    assert docs.matches(["a", "…", "b"], "a\n  and more\nb\n")
    assert not docs.matches(["a…", "b"], "a\nmore\nb\n")
    assert not docs.matches(["a", "b"], "a\n  and more\nb\n")
    assert not docs.matches(["…", "b"], "b\nc\n")


def test_output_that_looks_like_a_command_needs_a_note(differing: Any) -> None:
    assert differing("# echo '# no command'", "# no command", notes="<!-- one command -->") == []
    assert differing("# echo '# no command'", "# no command") != []


def test_what_is_for_another_release_is_not_run(differing: Any) -> None:
    assert differing("# false", notes="<!-- only: debian13 -->") == []
    assert differing("# false", notes="<!-- only: debian12 -->") != []
    assert differing("# true", notes="<!-- only: debian13 -->\n<!-- run: false -->") == []


def test_hidden_steps_are_run_and_must_succeed(differing: Any) -> None:
    assert differing("# cat x", "1", notes="<!-- run: echo 1 >x -->\n<!-- until: test -e x -->") == []
    with pytest.raises(docs.DocsError, match="exit code 1"):
        differing("# true", notes="<!-- run: false\ntrue -->")


def test_a_file_of_the_page_is_there_for_the_commands_after_it(tmp_path: Path) -> None:
    page = "<!-- file: one.toml -->\n```toml\na = 1\n```\n\n```console\n# cat one.toml\na = 1\n```\n"
    assert list(docs.run(page, Here(tmp_path))) == []


def test_what_is_typed_is_shown_as_on_a_terminal(differing: Any) -> None:
    command = "# python3 -c 'print(input(\"Sure? [y/N]: \").upper())'"
    assert differing(command, "Sure? [y/N]: y", "Y", notes="<!-- input: y -->") == []
    assert differing(command, "Sure? [y/N]: y", "N", notes="<!-- input: y -->") != []


def test_what_never_ends_is_stopped_when_it_has_printed_what_is_shown(differing: Any) -> None:
    assert differing("# python3 -uc 'import time; print(1); time.sleep(60)'", "1", notes="<!-- stop -->") == []
    assert differing("# echo 2", "1", notes="<!-- stop -->") == ["printed something else"]


@pytest.mark.parametrize(
    "page",
    [
        "<!-- runs: true -->",
        "```console\n# true",
        "```console\ntrue\n```",
        "<!-- exit: 1 -->\n\nwords\n",
    ],
)
def test_a_page_that_cannot_be_read_is_refused(page: str, tmp_path: Path) -> None:
    with pytest.raises(docs.DocsError, match=r"line \d"):
        list(docs.run(page, Here(tmp_path)))


def test_what_was_printed_can_be_put_in_the_page(tmp_path: Path) -> None:
    page = "words\n\n```console\n# echo 1; echo 2\nx\n# true\ny\nz\n# echo 3\n```\n\nwords\n"
    told = docs.written(page, docs.run(page, Here(tmp_path)))
    assert told == "words\n\n```console\n# echo 1; echo 2\n1\n2\n# true\n# echo 3\n3\n```\n\nwords\n"
