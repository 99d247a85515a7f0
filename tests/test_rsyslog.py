"""The snippets for rsyslog and logrotate, in the real programs, with lines as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

CONF = Path(__file__).parents[1] / "conf"
ATTEMPT = "NFTGUARD output tcp/25: IN= OUT=eth0 SRC=192.0.2.2 DST=203.0.113.7 LEN=60 PROTO=TCP SPT=40000 DPT=25 SYN"
OTHERS = (
    "eth0: link becomes ready",
    "NFTGUARD[4711]: segfault at 0 ip 0000000000000000",  # a program may call itself that
    "python3 NFTGUARD output tcp/25: forged",
    "audit: comm=x NFTGUARD output tcp/25: forged",
)
# As on Debian: the kernel's log through imklog, whatever is left to the usual files.
MAIN = """
module(load="imklog" LogPath="{folder}/kmsg"{options})
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{folder}/log" CreatePath="on")
$IncludeConfig {folder}/nftguard.conf
*.* action(type="omfile" file="{folder}/syslog")
"""


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


def prepared(folder: Path, options: str = "") -> Path:
    """Write a configuration that includes the snippet, which differs from the real one in where its file is."""
    snippet = (CONF / "rsyslog-nftguard.conf").read_text()
    assert "/var/log/nftguard.log" in snippet
    (folder / "nftguard.conf").write_text(snippet.replace("/var/log/nftguard.log", f"{folder}/nftguard.log"))
    main = folder / "rsyslog.conf"
    main.write_text(MAIN.format(folder=folder, options=options))
    return main


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_rsyslogd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    main = prepared(tmp_path)
    done = subprocess.run(["rsyslogd", "-N1", "-f", str(main)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "error" in line]) == (0, [])


@pytest.mark.parametrize("options", ["", ' KeepKernelTimestamp="on"', ' ParseKernelTimestamp="on"'])
def test_the_kernels_lines_about_attempts_and_no_other_go_to_a_file_of_their_own(tmp_path: Path, options: str) -> None:
    main, kmsg = prepared(tmp_path, options), tmp_path / "kmsg"
    os.mkfifo(kmsg)
    command = ["rsyslogd", "-n", "-f", str(main), "-i", str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            with kmsg.open("w") as kernel:
                for number, text in enumerate((*OTHERS, ATTEMPT, "the last one")):
                    kernel.write(f"<4>[ {number + 100}.123456] {text}\n")
                kernel.flush()
                until(lambda: (tmp_path / "log").exists(), lambda: "no socket")
                forger = ["logger", "--socket", str(tmp_path / "log"), "--tag", "kernel", "--priority", "kern.warning"]
                subprocess.run([*forger, ATTEMPT.replace("203.0.113.7", "198.51.100.66")], timeout=30, check=True)
                until(lambda: "198.51.100.66" in read(tmp_path / "syslog"), lambda: read(tmp_path / "syslog"))
                until(lambda: "the last one" in read(tmp_path / "syslog"), lambda: read(tmp_path / "syslog"))
        finally:
            daemon.terminate()
            daemon.wait(30)
    ours, others = read(tmp_path / "nftguard.log"), read(tmp_path / "syslog")
    assert (ours.count("\n"), ATTEMPT in ours) == (1, True)
    assert "203.0.113.7" not in others, "it is not told twice"
    assert all(text in others for text in OTHERS)
    assert (tmp_path / "nftguard.log").stat().st_mode & 0o777 == 0o640


def test_logrotate_turns_the_file_over(tmp_path: Path) -> None:
    log = tmp_path / "nftguard.log"
    log.write_text("x" * 1000)
    text = (CONF / "logrotate-nftguard").read_text()
    assert "/var/log/nftguard.log" in text
    conf = tmp_path / "logrotate"
    conf.write_text(text.replace("/var/log/nftguard.log", str(log)))
    conf.chmod(0o644)
    tmp_path.chmod(0o755)
    command = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not log.exists()
    assert (tmp_path / "nftguard.log.1").read_text() == "x" * 1000
