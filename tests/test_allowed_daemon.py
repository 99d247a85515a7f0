"""Allowances through a real daemon: given by the verb, in force, listed, kept over a restart, taken back, ended."""

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING

from nftguard.allowed import book
from tests.groups import joining
from tests.guard import Guard
from tests.test_allowed_packets import listening, passes, sending
from tests.world import MAIL, MALLORY, POSTFIX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns import Namespace


def test_a_port_is_open_from_the_verb_to_the_end_of_its_time(
    netns: Namespace, config_file: Path, folders: Path
) -> None:
    config_file.write_text(MAIL)
    with Guard(netns, config_file, folders) as guard, listening(netns, socket.AF_INET, 25, 587):
        guard.ready()

        def passing() -> list[bool]:
            where = ((587, POSTFIX), (587, MALLORY), (25, POSTFIX))
            return [passes(netns, socket.AF_INET, port, uid) for port, uid in where]

        done = guard.cli("allow", "587", "--user", str(POSTFIX), "--for", "1h")
        assert done.stdout.startswith("allowed until "), done.stderr
        assert passing() == [True, False, False]
        status = guard.status()
        assert (status["state"], [one["value"] for one in status["allowed"]]) == ("protected", [str(POSTFIX)])
        assert f"allowed: tcp/587 on output for user {POSTFIX}, 59 min left" in guard.cli("status").stdout
        guard.cli("apply")
        netns.nft("flush ruleset")
        guard.logged("rules repaired")
        assert passing() == [True, False, False], "kept over a reload and a repair"

        assert guard.cli("allow", "25", "--anyone", "--for", "1s").returncode == 0
        guard.logged("no longer allowed: tcp/25 on output for anyone (its time is over")
        guard.until(lambda: len(guard.status()["allowed"]) == 1, "the end in status")
        assert passing() == [True, False, False]
        assert guard.status()["state"] == "protected"
        assert guard.log().count("rules repaired") == 1, "an end is no damage"

        refused = guard.cli("allow", "587", "--user", "nobody-of-that-name", "--for", "1h")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "has no user nobody-of-that-name" in refused.stderr
        guard.signal(signal.SIGKILL)
        guard.process.wait()

    with Guard(netns, config_file, folders) as guard, listening(netns, socket.AF_INET, 587):
        guard.ready()
        assert passes(netns, socket.AF_INET, 587, POSTFIX), "kept over a crash"
        done = guard.cli("deny", "587")
        assert (done.returncode, done.stdout) == (0, f"taken back: tcp/587 on output for user {POSTFIX}\n")
        assert not passes(netns, socket.AF_INET, 587, POSTFIX)
        assert guard.cli("deny", "--all").returncode == 1
        assert (guard.status()["state"], guard.status()["allowed"]) == ("protected", [])
        assert json.loads(book.path().read_text())["grants"] == []


def test_a_file_of_no_use_opens_nothing_and_is_told(netns: Namespace, config_file: Path, folders: Path) -> None:
    config_file.write_text(MAIL)
    book.path().write_text('{"boot": 1')
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        guard.logged("what was allowed for a while ends: it is not as nftguard writes it")
        assert guard.status()["state"] == "protected"


def test_a_unit_that_is_started_later_passes_then(
    netns: Namespace, config_file: Path, folders: Path, base: Path
) -> None:
    config_file.write_text(MAIL)
    with Guard(netns, config_file, folders) as guard, listening(netns, socket.AF_INET, 587):
        guard.ready()
        done = guard.cli("allow", "587", "--unit", "nftguard-mta.service", "--for", "1h")
        assert "nftguard-mta.service is not running; it holds once that is started" in done.stdout
        (base / "nftguard-mta.service").mkdir()
        sender = sending("127.0.0.1")
        guard.until(
            lambda: netns.run(*joining(base / "nftguard-mta.service", *sender), check=False).returncode == 0, "a way"
        )
        assert netns.run(*sender, check=False).returncode == 1, "another unit"
        assert guard.cli("allow", "25", "--unit", "nftguard-mta.service", "--for", "1h").stdout.endswith(
            "mta.service\n"
        )
        assert guard.status()["state"] == "protected"
