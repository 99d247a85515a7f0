"""The journal catalog: an entry for each event, in the form that journalctl takes (systemd's docs/CATALOG.md)."""

from __future__ import annotations

import ast
import re
import shutil
import string
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nftguard
from nftguard.events import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(nftguard.__file__).parent
CATALOG = SOURCES.parent / "systemd/nftguard.catalog"
# Their fields come from functions, so that they do not stand in the call that logs them.
FIELDS = {
    "blocked": {"BLOCK", "HOOK", "PROTOCOL", "SOURCE", "SOURCE_PORT", "DESTINATION", "PORT", "FIRST", "LAST", "RECORD"},
    "blocked_summary": {"BLOCK", "HOOK", "PROTOCOL", "PORT", "PACKETS", "BYTES", "ATTEMPTS", "RECORDED", "RECORD"},
}


def entries() -> dict[str, str]:
    text = "".join(line for line in CATALOG.read_text().splitlines(keepends=True) if not line.startswith("#"))
    parts = re.split(r"^-- ([0-9a-f]{32})$", text, flags=re.MULTILINE)
    assert parts[0].strip() == ""
    ids, texts = parts[1::2], parts[2::2]
    assert len(set(ids)) == len(ids), "none twice"
    return dict(zip(ids, texts, strict=True))


def logged() -> Iterator[tuple[str, set[str]]]:
    """Every call in the sources that records an event, with the fields that it names."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(), args=[ast.Constant(value=str(name))]) if name in EVENTS:
                    yield name, {word.arg.upper() for word in node.keywords if word.arg}


def test_every_event_has_its_entry_and_no_other_has_one() -> None:
    assert set(entries()) == {event.message_id for event in EVENTS.values()}


@pytest.mark.parametrize("name", EVENTS)
def test_an_entry_names_only_fields_that_its_records_always_have(name: str) -> None:
    text = entries()[EVENTS[name].message_id]
    calls = [fields for event, fields in logged() if event == name]
    known = set.intersection(*calls) if calls else set()
    known |= {field.upper() for _, field, _, _ in string.Formatter().parse(EVENTS[name].sentence) if field}
    known |= FIELDS.get(name, set())
    assert set(re.findall(r"@([^@\n]*)@", text)) <= {f"NFTGUARD_{field}" for field in known}


@pytest.mark.parametrize("name", EVENTS)
def test_an_entry_has_its_headers_and_fits_a_terminal(name: str) -> None:
    head, _, text = entries()[EVENTS[name].message_id].strip("\n").partition("\n\n")
    assert re.fullmatch(r"Subject: \S.*\nDefined-By: nftguard", head)
    assert text.strip()
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()


def test_journalctl_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    run = ["journalctl", f"--root={tmp_path}"]
    done = subprocess.run([*run, "--update-catalog"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run([*run, "--list-catalog"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {event.message_id for event in EVENTS.values()}
