"""Why systemd ends us, with a systemctl of the test's own; the boot tests ask the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nftguard import hostinfo, unitjob

if TYPE_CHECKING:
    from pathlib import Path

STOP = "7 nftguard.service stop running"


@pytest.fixture(autouse=True)
def _run_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1")
    monkeypatch.setattr(hostinfo, "own_unit", lambda: "nftguard.service")


def going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, system: str = "running") -> str:
    path = tmp_path / "systemctl"
    path.write_text(f"#!/bin/sh\ncase $1 in list-jobs) {jobs} ;; *) echo {system}; exit 1 ;; esac\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return unitjob.going_on()


@pytest.mark.parametrize(
    ("jobs", "system", "says"),
    [
        (f"echo '{STOP}'", "running", ""),
        (f"echo '{STOP}'; echo '8 other.service stop waiting'", "degraded", ""),
        (f"echo '{STOP}'; echo '8 other.service start waiting'", "running", ""),
        ("echo '7 nftguard.service restart running'", "running", "not by an explicit stop"),
        ("echo 'No jobs running.'", "running", "not by an explicit stop"),
        (f"echo '{STOP}'; echo '9 rescue.target start waiting'", "running", "on the way to rescue.target"),
        (f"echo '{STOP}'; echo '9 shutdown.target start waiting'", "running", "on the way to shutdown.target"),
        (f"echo '{STOP}'", "stopping", "the system is going down"),
        ("echo 'Failed to connect to bus' >&2; exit 1", "running", "systemd does not say why"),
        ("kill -TERM $$", "running", "systemd does not say why"),
    ],
)
def test_only_an_explicit_stop_is_an_end_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str, system: str, says: str
) -> None:
    assert going_on(tmp_path, monkeypatch, jobs, system) == says


def test_without_systemctl_nothing_is_an_end_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert unitjob.going_on() == "systemd does not say why"


def test_whoever_runs_it_in_a_shell_ends_it_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostinfo, "own_unit", lambda: "session-3.scope")
    assert unitjob.going_on() == ""
    monkeypatch.setattr(hostinfo, "own_unit", lambda: "nftguard.service")
    monkeypatch.delenv("INVOCATION_ID")
    assert unitjob.going_on() == ""
