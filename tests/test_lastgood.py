"""The last good policy on disk, and the script at boot that loads it without Python."""
# ruff: noqa: E501 - a table of contents reads best with one a line

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

import nftguard
from nftguard import bootscript, config, lastgood
from nftguard.lastgood import LastGood
from nftguard.model import OWNED, PLAIN, Counter, Features
from nftguard.nftscript import script
from nftguard.plan import rebuild
from tests.examples import config_of, configs

if TYPE_CHECKING:
    import subprocess

    from nftguard.config import Config
    from nftguard.kernel import Nftables
    from tests.netns import Namespace

pytestmark = pytest.mark.usefixtures("folders")

BOOT = Path(nftguard.__file__).with_name("boot.sh")
MAIL = '[[block]]\nname = "mail"\nports = [25, "1000-2000"]\n'


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs(exceptions=True))
def test_any_policy_is_read_back_as_it_was(found: Config) -> None:
    good = LastGood(found, {}, "abc")
    lastgood.save(good, PLAIN)
    again = lastgood.load()
    assert again
    assert again.table(PLAIN) == good.table(PLAIN)
    assert (again.config.log, again.config.service, again.mark) == (found.log, found.service, "abc")


def test_totals_are_kept_in_the_file_and_in_the_script() -> None:
    totals = {"mail.output.tcp.25": Counter("mail.output.tcp.25", 7, 420)}
    lastgood.save(LastGood(config_of(MAIL), totals, "abc"), Features(OWNED))
    again = lastgood.load()
    assert again
    assert again.counters == totals
    text = lastgood.path().read_text()
    assert text.startswith("# nftguard abc\n# {")
    assert text.endswith(script(rebuild(None, again.table(Features(OWNED)))) + "# end\n")
    assert "add counter inet nftguard mail.output.tcp.25 { packets 7 bytes 420 }" in text
    assert lastgood.path().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"# nftguard abc\n", b"# nftguard abc\n# {\n", b"# nftguard abc\n# []\n", b"\xff\xfe", b"# nftguard abc\n# {\"config\": 5, \"counters\": {}}\n",
     b'# nftguard abc\n# {"config": {"block": [{"name": "a", "ports": [0]}]}, "counters": {}}\n', b'# nftguard abc\n# {"config": {}, "counters": {"x": [1]}}\n'],
)  # fmt: skip
def test_what_is_not_whole_is_none(content: bytes) -> None:
    lastgood.path().write_bytes(content)
    assert lastgood.load() is None


def boot(netns: Namespace, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the boot script, with a python in the place of /usr/bin/nftguard that knows this checkout."""
    command = path.parent / "bin/nftguard"
    if not command.exists():
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\ncd {Path.cwd()} && exec {sys.executable} -m nftguard "$@"\n')
        command.chmod(0o755)
    return netns.run(
        str(BOOT), str(path), check=False, env=os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    )


def apply(path: Path) -> None:
    found = config.load(path)
    lastgood.save(LastGood(found, {}, bootscript.fingerprint(str(path))), PLAIN)


def test_the_boot_script_loads_the_last_good_rules_without_python(
    netns: Namespace, kernel: Nftables, config_file: Path
) -> None:
    apply(config_file)
    (config_file.parent / "bin").mkdir()
    (config_file.parent / "bin/nftguard").write_text("#!/bin/sh\necho called >&2; exit 1\n")
    (config_file.parent / "bin/nftguard").chmod(0o755)
    done = boot(netns, config_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert kernel.snapshot() == LastGood(config.load(config_file), {}, "").table(PLAIN)


@pytest.mark.parametrize("change", ["content", "drop-in", "removed drop-in", "touch"])
def test_both_take_the_same_fingerprint(netns: Namespace, kernel: Nftables, config_file: Path, change: str) -> None:
    """Where the files are others by now, `nftguard apply` steps in; where only their times are, it does not."""
    drop_ins = config_file.with_suffix(".d")
    drop_ins.mkdir()
    (drop_ins / "10 é.toml").write_text('[[block]]\nname = "ten"\nports = [10]\n')
    (drop_ins / "B.toml").write_text('[[block]]\nname = "b"\nports = [11]\n')
    (drop_ins / "a.toml").write_text('[[block]]\nname = "a"\nports = [12]\n')
    (drop_ins / ".hidden.toml").write_text("[")
    apply(config_file)
    if change == "content":
        config_file.write_text(MAIL)
    elif change == "drop-in":
        (drop_ins / "c.toml").write_text('[[block]]\nname = "c"\nports = [13]\n')
    elif change == "removed drop-in":
        (drop_ins / "B.toml").unlink()
    else:
        os.utime(config_file, (1, 1))
    done = boot(netns, config_file)
    assert done.returncode == 0, done.stderr
    assert ("ports blocked" in done.stdout) is (change != "touch")
    live = kernel.snapshot()
    assert live
    assert live.counters.keys() == LastGood(config.load(config_file), {}, "").table(PLAIN).counters.keys()


def test_at_the_first_boot_the_configuration_is_applied(netns: Namespace, kernel: Nftables, config_file: Path) -> None:
    assert boot(netns, config_file).returncode == 0
    assert kernel.snapshot()
    assert lastgood.load()


@pytest.mark.parametrize("broken", ["[", None])
def test_with_a_broken_configuration_the_last_good_rules_stay_and_it_fails(
    netns: Namespace, kernel: Nftables, config_file: Path, broken: str | None
) -> None:
    apply(config_file)
    if broken:
        config_file.write_text(broken)
    else:
        config_file.unlink()
    done = boot(netns, config_file)
    assert done.returncode == 78
    assert str(config_file) in done.stderr
    live = kernel.snapshot()
    assert live
    assert len(live.counters) == 11


@pytest.mark.parametrize("left", [0.3, 0.6, 0.99])
def test_a_script_that_was_cut_is_replaced(netns: Namespace, kernel: Nftables, config_file: Path, left: float) -> None:
    """Nft takes the beginning of a script for a whole one."""
    apply(config_file)
    text = lastgood.path().read_text()
    lastgood.path().write_text(text[: int(len(text) * left)].rpartition("\n")[0] + "\n")
    assert boot(netns, config_file).returncode == 0
    assert kernel.snapshot() == LastGood(config.load(config_file), {}, "").table(PLAIN)


def test_a_broken_script_is_replaced(netns: Namespace, kernel: Nftables, config_file: Path) -> None:
    apply(config_file)
    lastgood.path().write_text(lastgood.path().read_text().replace("chain", "chian"))
    assert boot(netns, config_file).returncode == 0
    assert kernel.snapshot()


def test_a_live_table_is_left_alone(netns: Namespace, kernel: Nftables, config_file: Path) -> None:
    apply(config_file)
    assert boot(netns, config_file).returncode == 0
    netns.nft("add element inet nftguard users { 5 limit rate over 500/second burst 1000 packets }")
    before = kernel.snapshot()
    assert boot(netns, config_file).returncode == 0
    assert kernel.snapshot() == before
