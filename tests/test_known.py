"""The daemon's end of the names: what it takes from the resolver, what it keeps, and what it tells."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nftguard import state
from nftguard.resolver import entries, known
from nftguard.resolver.entries import MAX_NAMES, Entry
from nftguard.resolver.known import Names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RELAY, OTHER = "smtp.relay.example", "other.example"
V4, V6 = "198.51.100.7", "2001:db8::7"


@pytest.fixture
def begin(folders: Path, clock: list[float]) -> Iterator[Callable[[], Names]]:
    """Begins as a new process would; the time of day is a million seconds ahead of that since the boot."""
    begun: list[Names] = []
    (folders / "run-resolver").mkdir()

    def begin() -> Names:
        begun.append(Names(lambda: clock[0], lambda: clock[0] + 1e6))
        return begun[-1]

    yield begin
    for names in begun:
        names.close()


def answer(folders: Path, **found: Entry) -> None:
    """Write answers as the resolver does; `_` in a name stands for a dot."""
    text = entries.encode({name.replace("_", "."): entry for name, entry in found.items()})
    state.write(folders / "run-resolver/answers.json", text)


def asked(folders: Path) -> dict[str, Entry]:
    return entries.decode((folders / "run/names").read_bytes())


def good(*addresses: str, at: float = 1000.0, ttl: float = 60.0, error: str = "") -> Entry:
    return Entry(addresses, at, ttl, error)


def test_what_is_wanted_is_written_for_the_resolver_and_removed_with_the_last_name(
    folders: Path, begin: Callable[[], Names]
) -> None:
    names = begin()
    names.want([])
    assert not (folders / "run/names").exists()
    names.want([RELAY, OTHER, RELAY])
    assert set(asked(folders)) == {RELAY, OTHER}
    assert (folders / "run/names").stat().st_mode & 0o777 == 0o644
    assert names.addresses() == {RELAY: frozenset(), OTHER: frozenset()}
    before = (folders / "run/names").stat()
    names.want([RELAY, OTHER])
    assert (folders / "run/names").stat() == before, "what is said already is not written again"
    (folders / "run/names").unlink()
    names.want([RELAY, OTHER])
    assert set(asked(folders)) == {RELAY, OTHER}, "what somebody removed is said again"
    names.want([])
    assert not (folders / "run/names").exists()


def test_answers_are_taken_for_the_names_that_are_wanted(folders: Path, begin: Callable[[], Names]) -> None:
    names = begin()
    names.want([RELAY])
    assert not names.read()
    answer(folders, smtp_relay_example=good(V4, V6), evil_example=good("203.0.113.66"))
    assert names.read()
    assert names.addresses() == {RELAY: {V4, V6}}
    assert not names.read(), "nothing new"
    answer(folders, smtp_relay_example=good(V6, at=1001.0))
    assert names.read()
    assert names.addresses() == {RELAY: {V6}}
    assert asked(folders)[RELAY].addresses == (V6,), "a new resolver goes on from there"
    assert names.problems() == ()


def test_an_answer_without_addresses_empties_a_name_and_the_lack_of_an_answer_does_not(
    folders: Path, begin: Callable[[], Names]
) -> None:
    names = begin()
    names.want([RELAY])
    answer(folders, smtp_relay_example=good(V4))
    names.read()
    answer(folders, smtp_relay_example=Entry(error="no server answers"))
    assert not names.read()
    assert names.addresses() == {RELAY: {V4}}
    answer(folders)
    assert not names.read()
    (folders / "run-resolver/answers.json").unlink()
    assert not names.read()
    assert names.addresses() == {RELAY: {V4}}
    answer(folders, smtp_relay_example=good(error="there is no such name"))
    assert names.read()
    assert names.addresses() == {RELAY: frozenset()}
    assert names.problems() == (f"{RELAY}: there is no such name; it has no address, and nothing passes for it",)


def test_the_last_good_answers_outlive_the_process_and_the_boot(
    folders: Path, begin: Callable[[], Names], clock: list[float]
) -> None:
    names = begin()
    names.want([RELAY, OTHER])
    answer(folders, smtp_relay_example=good(V4, V6))
    names.read()
    clock[0] += 7200
    shutil.rmtree(folders / "run-resolver")
    names.end()
    assert not (folders / "run/names").exists(), "the resolver ends"
    names = begin()
    assert names.fd is not None, "the folder need not be there"
    names.want([RELAY, OTHER])
    assert names.addresses() == {RELAY: {V4, V6}, OTHER: frozenset()}
    assert asked(folders)[RELAY] == Entry((V4, V6), at=1000.0, ttl=60.0)
    assert names.problems()[1].startswith(f"{RELAY}: not looked up for 2 h (see ")
    names.want([OTHER])
    names.want([RELAY, OTHER])
    assert names.addresses()[RELAY] == frozenset(), "what was not wanted is forgotten"


def test_each_problem_is_told_in_a_sentence(folders: Path, begin: Callable[[], Names], clock: list[float]) -> None:
    names = begin()
    names.want([RELAY, OTHER])
    for problem in names.problems():
        assert "not looked up yet (see `systemctl status nftguard-resolver.path" in problem
    answer(folders, smtp_relay_example=good(V4, error="no server answers"), other_example=good(V6))
    names.read()
    clock[0] += 3 * 3600
    assert names.problems()[1] == f"{RELAY}: no server answers; its last answer, of 3 h ago, holds"
    assert names.problems()[0].startswith(f"{OTHER}: not looked up for 3 h")
    answer(folders, smtp_relay_example=good(V4, at=clock[0] - known.LATE), other_example=good(V6, at=clock[0] + 1e9))
    names.read()
    assert names.problems() == ()
    clock[0] += known.LATE + 61
    assert len(names.problems()) == 2, "also where a time was out of all measure"
    names.want(f"n{number}.example" for number in range(MAX_NAMES + 44))
    assert len(names.addresses()) == len(asked(folders)) == MAX_NAMES
    *_, most, last = names.problems()
    assert len(names.problems()) == 12
    assert most == f"{MAX_NAMES - 10} more names have problems like these"
    assert last == f"more than {MAX_NAMES} host names: 44 of them are not looked up"


def _entry(**fields: Any) -> str:
    return json.dumps({RELAY: {"addresses": [V4], "at": 1.0, "ttl": 1.0, "error": ""} | fields})


REFUSED = {
    "is not JSON": ["", "{", "\xff", '{"a": 1e}', "[" + "9" * 5000 + "]"],
    "is nested too deeply": ["[" * 100_000],
    "is not an object": ["[]", "null", '"a"', json.dumps(dict.fromkeys(map(str, range(300))))],
    "is no entry": [
        f'{{"{RELAY}": {{}}}}',
        f'{{"{RELAY}": []}}',
        _entry(more=1),
        _entry(addresses=V4),
        _entry(error=1),
    ],
    "is no host name": ['{"-x": {}}', '{"a\\n": {}}', '{"198.51.100.7": {}}'],
    "is no string": [_entry(addresses=[3325256711]), _entry(addresses=[None])],
    "is no address": [_entry(addresses=[text]) for text in ("0.0.0.0/0", "198.51.100.7\n", RELAY, "::/0", "", "}")],
    "is no host's address": [
        *(_entry(addresses=[text]) for text in ("0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1")),  # noqa: S104
        *(_entry(addresses=[text]) for text in ("::ffff:198.51.100.7", "fe80::1", "2001:db8::1%lo", "0.1.2.3")),
    ],
    "addresses": [_entry(addresses=[V4] * 1000)],
    "a time is no number": [
        *(_entry(at=value) for value in (True, "1", float("nan"), float("inf"))),
        *(_entry(ttl=value) for value in (None, False, "")),
    ],
    "is larger than": [" " * (entries.MAX_FILE + 1)],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_answers_that_make_no_sense_are_refused_whole_and_the_last_good_ones_hold(
    folders: Path, begin: Callable[[], Names], reason: str
) -> None:
    names = begin()
    names.want([RELAY])
    answer(folders, smtp_relay_example=good(V4, V6))
    names.read()
    for text in REFUSED[reason]:
        (folders / "run-resolver/answers.json").write_text(text, encoding="latin-1")
        assert not names.read(), text[:80]
        assert names.addresses() == {RELAY: {V4, V6}}
        [problem] = names.problems()
        assert reason in problem
        assert "\n" not in problem
    answer(folders, smtp_relay_example=good(V6))
    assert names.read()
    assert names.problems() == ()


def test_what_is_no_regular_file_is_neither_waited_for_nor_followed(folders: Path, begin: Callable[[], Names]) -> None:
    names = begin()
    names.want([RELAY])
    path, elsewhere = folders / "run-resolver/answers.json", folders / "elsewhere"
    state.write(elsewhere, entries.encode({RELAY: good(V4)}))
    makers: list[Callable[[], object]] = [
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to(elsewhere),
        lambda: path.symlink_to("/dev/zero"),
    ]
    for make in makers:
        make()
        assert not names.read()
        assert str(path) in names.problems()[0]
        if path.is_fifo():
            assert "is not a regular file" in names.problems()[0]
        path.rmdir() if path.is_dir() else path.unlink()


def wakes(names: Names) -> bool:
    """Whether something is heard within a while that makes a look due."""
    assert names.fd is not None
    end = time.monotonic() + 5
    while names.due() is None and time.monotonic() < end:
        select.select([names.fd], [], [], 0.2)
        names.hear()
    return names.due() is not None


def test_a_change_of_the_answers_is_heard_also_when_their_folder_comes_and_goes(
    folders: Path, begin: Callable[[], Names]
) -> None:
    folder = folders / "run-resolver"
    folder.rmdir()
    names = begin()
    names.want([RELAY])
    assert names.due() is None
    for addresses in ((V4,), (V6,)):
        folder.mkdir()
        answer(folders, smtp_relay_example=good(*addresses))
        assert wakes(names)
        assert names.read()
        assert names.addresses() == {RELAY: frozenset(addresses)}
        names.hear()
        names.read()
        answer(folders, smtp_relay_example=good(V4, V6))
        assert wakes(names)
        assert names.read()
        shutil.rmtree(folder)
        assert wakes(names)
        assert not names.read()


def test_other_files_beside_the_answers_are_not_minded(folders: Path, begin: Callable[[], Names]) -> None:
    names = begin()
    names.want([RELAY])
    state.write(folders / "run-resolver/other", "x")
    assert names.fd is not None
    assert select.select([names.fd], [], [], 5)[0]
    names.hear()
    assert names.due() is None


def test_a_resolver_gone_mad_is_looked_at_once_a_second(folders: Path, begin: Callable[[], Names]) -> None:
    names = begin()
    names.want([RELAY])
    before = time.monotonic()
    names.read()
    for number in range(100):
        answer(folders, smtp_relay_example=good(f"198.51.100.{number}"))
        names.hear()
    due = names.due()
    assert due is not None
    assert due >= before + known.EVERY


def test_without_inotify_the_answers_are_looked_at_now_and_then(
    folders: Path, begin: Callable[[], Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folders / "missing/run"))
    names = begin()
    assert names.fd is None
    assert names.due() is None
    names.want([RELAY])
    names.hear()
    assert names.due() is not None
    assert "cannot be watched" in names.problems()[0]


def test_a_full_disk_costs_what_is_kept_and_is_told(
    folders: Path, begin: Callable[[], Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = begin()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nftguard.state.write", full)
        names.want([RELAY])
    answer(folders, smtp_relay_example=good(V4))
    with monkeypatch.context() as patch:
        patch.setattr("nftguard.state.write", full)
        assert names.read()
        assert names.addresses() == {RELAY: {V4}}
        assert names.problems() == (
            f"{folders / 'state/names.json'} cannot be written: No space left on device; a restart forgets addresses",
            f"{folders / 'run/names'} cannot be written: No space left on device; names are not looked up",
        )
    names.read()
    assert names.problems() == ()
    assert asked(folders)[RELAY].addresses == (V4,)
    assert begin()._known.keys() == {RELAY}


def test_what_was_kept_is_read_without_trust(folders: Path, begin: Callable[[], Names]) -> None:
    for text in ("{", _entry(at=None), _entry(addresses=["0.0.0.0/0"])):
        (folders / "state/names.json").write_text(text)
        names = begin()
        names.want([RELAY])
        assert names.addresses() == {RELAY: frozenset()}


def test_the_daemon_imports_nothing_of_the_resolver_s_own() -> None:
    code = "import sys, nftguard.resolver.known; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in out} & {"dns", "asyncio", "pydantic", "selectors"} == set()
