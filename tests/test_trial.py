"""`nftguard try`: kept only where somebody says so in time, whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import sys
import termios
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nftguard import bootscript, lastgood, notify, trial
from nftguard.config import load
from nftguard.control import Answer, Request
from nftguard.errors import ConfigError, KernelError
from nftguard.keeper import Keeper
from nftguard.model import Counter
from nftguard.pace import Cause
from nftguard.status import State
from nftguard.surroundings import Surroundings
from nftguard.trial import Trials
from tests.fake_kernel import FakeKernel
from tests.guard import PATIENCE, Guard, Running, cli
from tests.test_lastgood import boot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nftguard.errors import NftguardError
    from nftguard.kernel import Nftables
    from nftguard.plan import Plan
    from tests.netns import Namespace

NEW = '[[block]]\nname = "mail"\nports = [25, 26]\n'
OLD_PORTS, NEW_PORTS = 11, 2
APPLIED = "nftguard apply or a reload was run elsewhere"


class Asker(Running):
    """One `nftguard try` on a terminal of its own, which it controls."""

    def __init__(self, guard: Guard, *arguments: str) -> None:
        self._guard = guard
        self.terminal, end = pty.openpty()
        self.said = ""
        words = (sys.executable, "-m", "nftguard", "--config", str(guard.config), "try", *arguments)
        self.process = guard.netns.popen(
            *words,
            stdin=end,
            stdout=end,
            stderr=end,
            env=os.environ | {"COLUMNS": "400"},  # so that nothing is folded
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(end)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.hang_up()

    def hang_up(self) -> None:
        """End the terminal, as a connection that is lost does."""
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1

    def hear(self, text: str = "[y/N]") -> None:
        """Wait until it has said so."""
        end = time.monotonic() + PATIENCE
        while text not in self.said:
            self._guard.listen()  # a daemon that nobody listens to waits in the end
            assert time.monotonic() < end, self.said
            if select.select([self.terminal], [], [], 0.02)[0]:
                try:
                    self.said += os.read(self.terminal, 65536).decode()
                except OSError:  # the other end is closed
                    assert text in self.said, self.said

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def end(self) -> int:
        """Wait for the exit code, reading on: a full terminal would keep it from ending."""
        end = time.monotonic() + PATIENCE
        while (code := self.process.poll()) is None:
            self._guard.listen()
            assert time.monotonic() < end, self.said
            if self.terminal >= 0 and select.select([self.terminal], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    self.said += os.read(self.terminal, 65536).decode()
        with contextlib.suppress(OSError):
            while self.terminal >= 0 and select.select([self.terminal], [], [], 0)[0]:
                self.said += os.read(self.terminal, 65536).decode()
        return code


@pytest.fixture
def guard(netns: Namespace, config_file: Path, folders: Path) -> Iterator[Guard]:
    """A daemon that said READY, and the new configuration beside the one in force."""
    with Guard(netns, config_file, folders) as guard:
        guard.ready()
        (folders / "new.toml").write_text(NEW)
        yield guard


@contextlib.contextmanager
def asking(guard: Guard, kernel: Nftables, *arguments: str) -> Iterator[Asker]:
    """Put the new configuration on trial; without arguments, as the file that was edited."""
    if not any(word.endswith(".toml") for word in arguments):
        guard.config.write_text(NEW)
    with Asker(guard, *arguments) as asker:
        asker.hear()
        assert blocked(kernel) == NEW_PORTS
        yield asker


def blocked(kernel: Nftables) -> int:
    """Count the ports that are blocked."""
    live = kernel.snapshot()
    return len(live.counters) if live else 0


def back(guard: Guard, kernel: Nftables) -> None:
    guard.until(lambda: blocked(kernel) == OLD_PORTS, "the rules before the trial")


def stopped(netns: Namespace, port: int, host: str) -> bool:
    """Whether a real packet is dropped: else it would be refused, for nobody listens."""
    with netns.entered(), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.settimeout(0.1)
        try:
            sock.connect((host, port))
        except TimeoutError:
            return True
        except ConnectionRefusedError:
            return False
    raise AssertionError("somebody listens")


def test_what_is_tried_is_in_force_and_kept_once_confirmed(guard: Guard, kernel: Nftables) -> None:
    hosts = ("127.0.0.1", "::1")
    with asking(guard, kernel) as asker:
        assert [(stopped(guard.netns, 26, host), stopped(guard.netns, 587, host)) for host in hosts] == [
            (True, False)
        ] * 2
        assert "2 tcp ports blocked on output (" in asker.said
        found = guard.status()
        assert found["state"] == "degraded"
        assert found["reasons"][0].startswith("on trial until ")
        guard.until(lambda: "on trial until" in guard.listen()[-1].get("STATUS", ""), "a STATUS that says so")
        asker.type("y\n")
        assert asker.end() == 0, asker.said
    assert "kept: 2 tcp ports blocked on output" in asker.said
    assert guard.status()["state"] == "protected"
    assert not (guard.folder / "state/trial").exists()
    words = [next(iter(found)) for found in guard.listen() if found.keys() & {"RELOADING", "READY"}]
    assert words == ["READY", "RELOADING", "READY"]
    (line,) = [line for line in guard.log().splitlines() if "trial ended (confirmed): 2 tcp" in line]
    assert "warning" not in line
    guard.process.kill()
    guard.process.wait()
    with Guard(guard.netns, guard.config, guard.folder) as second:
        second.ready()
        assert blocked(kernel) == NEW_PORTS


GIVEN_UP = {"nothing": "\n", "Ctrl-D": "\x04", "Ctrl-C": "\x03", "late": "", "hang-up": None}


def test_without_a_yes_the_rules_are_back_at_once(guard: Guard, kernel: Nftables) -> None:
    before = kernel.snapshot()
    for name, typed in GIVEN_UP.items():
        begun = time.monotonic()
        with asking(guard, kernel, "--timeout", "1s" if name == "late" else "10m") as asker:
            if typed is None:
                asker.hang_up()
            else:
                asker.type(typed)
            assert asker.end() == 1, (name, asker.said)
            assert kernel.snapshot() == before, name
            if typed:
                assert asker.said.endswith(
                    "not kept: the old rules are back: 11 tcp ports blocked on output\r\n"
                    f"{guard.config} still has what you tried: edit it, or `nftguard apply` takes it\r\n"
                ), asker.said
        assert time.monotonic() - begun < PATIENCE
    reasons = guard.status()["reasons"]
    assert f"{guard.config} was tried and not confirmed; `nftguard apply` takes it, or edit it" in reasons
    assert guard.log().count("trial ended (not confirmed") == len(GIVEN_UP)
    assert "repaired" not in guard.log()


def test_a_killed_asker_is_no_asker(guard: Guard, kernel: Nftables) -> None:
    """Nobody is left to ask for the rules back: the daemon's own time ends it."""
    with asking(guard, kernel, "--timeout", "1") as asker:
        os.killpg(asker.process.pid, signal.SIGKILL)
        assert asker.end() == -signal.SIGKILL
        back(guard, kernel)
    guard.logged("trial ended (not confirmed in time): 11 tcp ports blocked on output")


@pytest.mark.parametrize("file", [False, True], ids=["edited", "another file"])
def test_a_killed_daemon_starts_with_the_rules_before_the_trial(guard: Guard, kernel: Nftables, file: bool) -> None:
    before = kernel.snapshot()
    with asking(guard, kernel, *([str(guard.folder / "new.toml")] if file else [])) as asker:
        guard.process.kill()
        guard.process.wait()
        asker.type("y\n")
        assert asker.end() == 1
        assert "the daemon is gone, and so is the trial" in asker.said
    with Guard(guard.netns, guard.config, guard.folder) as second:
        second.ready()
        assert kernel.snapshot() == before
        assert second.status()["state"] == ("protected" if file else "degraded")
        if not file:
            assert "was tried and not confirmed; `nftguard apply` takes it, or edit it" in second.listen()[0]["STATUS"]
            second.signal(signal.SIGHUP)  # a reload is a decision
            second.ready(2)
            assert blocked(kernel) == NEW_PORTS
            assert second.status()["state"] == "protected"
    assert not (guard.folder / "state/trial").exists()


def test_after_a_reboot_the_boot_script_does_not_take_what_was_tried(guard: Guard, kernel: Nftables) -> None:
    with asking(guard, kernel):
        guard.process.kill()
        guard.process.wait()
    guard.netns.nft("flush ruleset")
    done = boot(guard.netns, guard.config)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{guard.config} was tried and not confirmed")
    assert blocked(kernel) == OLD_PORTS
    drop_ins = guard.config.with_suffix(".d")
    drop_ins.mkdir()
    (drop_ins / "more.toml").write_text('[[block]]\nname = "more"\nports = [27]\n')
    assert boot(guard.netns, guard.config).returncode == 0
    assert blocked(kernel) == 3, "they are others now"


def test_both_take_the_same_fingerprint_of_the_files(netns: Namespace, config_file: Path, folders: Path) -> None:
    assert cli(netns, config_file, "apply").returncode == 0
    drop_ins = config_file.with_suffix(".d")
    drop_ins.mkdir()
    for name in ("10 é.toml", "B.toml", "a.toml", ".hidden.toml", "none.txt"):
        (drop_ins / name).write_text(f'[service]\nresync = "{len(name)}min"\n')
    lastgood.doubt(bootscript.fingerprint(str(config_file), besides=()))
    assert "was tried and not confirmed" in boot(netns, config_file).stderr
    assert cli(netns, config_file, "apply").returncode == 0
    assert not (folders / "state/trial").exists(), "the one-shot apply decides, too"


def test_another_file_becomes_the_configuration_only_once_confirmed(guard: Guard, kernel: Nftables) -> None:
    """With the drop-ins of the configuration; what was there stays beside it."""
    old = guard.config.read_text()
    guard.config.chmod(0o640)
    os.chown(guard.config, 5, 6)
    file = guard.folder / "new.toml"
    with asking(guard, kernel, str(file)) as asker:
        asker.type("n\n")
        assert asker.end() == 1
        assert asker.said.endswith("\nnot kept: the old rules are back: 11 tcp ports blocked on output\r\n")
    assert (guard.config.read_text(), guard.status()["state"]) == (old, "protected")
    with asking(guard, kernel, str(file)) as asker:
        assert f"copy {file} to {guard.config}? [y/N]" in asker.said
        asker.type("yes\n")
        assert asker.end() == 0, asker.said
        assert asker.said.endswith(
            f"kept: 2 tcp ports blocked on output; {file} is {guard.config} now, "
            f"the old one is {guard.config}.before\r\n"
        )
    assert guard.config.read_text() == NEW
    assert guard.config.with_name("nftguard.toml.before").read_text() == old
    for path in (guard.config, guard.config.with_name("nftguard.toml.before")):
        found = path.stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 5, 6)
    assert guard.status()["state"] == "protected"
    first = lastgood.path().read_text().splitlines()[0]
    assert first == f"# nftguard {bootscript.fingerprint(str(guard.config))}", "the next boot need not apply it"
    assert not [path for path in (*guard.folder.iterdir(), *(guard.folder / "run").iterdir()) if "trial" in path.name]
    assert not [path for path in guard.folder.iterdir() if path.name[0] == "."]


def test_who_else_acts_meanwhile(guard: Guard, kernel: Nftables) -> None:
    with asking(guard, kernel) as asker:
        second = cli(guard.netns, guard.config, "try")
        assert second.returncode == 1
        assert re.fullmatch(
            r"another configuration is on trial until \d\d:\d\d:\d\d; wait, or answer it there\n", second.stderr
        )
        assert guard.cli("pause", "--for", "4s").returncode == 0
        assert blocked(kernel) == 0
        refused = guard.cli("try")
        assert (refused.returncode, "nothing is blocked, until" in refused.stderr) == (1, True)
        asker.type("y\n")
        assert asker.end() == 1
        assert "over: the rules were lifted elsewhere; SUSPENDED" in asker.said
        back(guard, kernel)
    guard.config.write_text(f'{NEW}[service]\non_stop = "keep"\n')
    with Asker(guard) as asker:
        asker.hear()
        assert guard.cli("apply").returncode == 0
        assert guard.status()["state"] == "protected", "who applies the files decides for them"
        asker.type("y\n")
        assert asker.end() == 0
        assert asker.said.endswith(f"\nkept: {APPLIED}; 2 tcp ports blocked on output\r\n")
    assert blocked(kernel) == NEW_PORTS
    guard.config.write_text(NEW.replace("26", "27, 28"))
    with Asker(guard) as asker:
        asker.hear()
        assert blocked(kernel) == 3
        assert guard.stop() == 0
        assert blocked(kernel) == NEW_PORTS, "what a stop leaves is not what was tried"
        asker.type("y\n")
        assert asker.end() == 1


def test_what_cannot_be_tried_changes_nothing(guard: Guard, kernel: Nftables) -> None:
    before = kernel.snapshot()
    file = guard.folder / "new.toml"
    file.write_text('[[block]]\nname = "mail"\nports = [0]\n')
    drop_ins = guard.config.with_suffix(".d")
    drop_ins.mkdir()
    (drop_ins / "more.toml").write_text('[[block]]\nname = "mail"\nports = [27]\n')
    done = guard.cli("try", str(file))
    assert done.returncode == 78
    assert done.stderr.splitlines()[0].startswith(f"{file}: block[0].ports[0]: ")
    file.write_text(NEW)
    done = guard.cli("try", str(file))
    assert (done.returncode, done.stderr.splitlines()) == (
        78, [f"{drop_ins}/more.toml: block[0].name: 'mail' is already a block of {file}; rename one"],
    )  # fmt: skip
    none = guard.folder / "none.toml"
    done = guard.cli("try", str(none))
    told = f"{none}: cannot be read: No such file or directory; see `ls -l`\n"
    assert (done.returncode, done.stderr) == (78, told), "--config names another file"
    done = guard.cli("try", "--timeout", "61m", str(file))
    assert (done.returncode, "'61m' is not a time between '1s' and '1h'" in done.stderr) == (2, True)
    (drop_ins / "more.toml").unlink()
    guard.process.kill()
    guard.process.wait()
    done = guard.cli("try", str(file))
    assert (done.returncode, "nftguard apply" in done.stderr) == (69, True)
    assert kernel.snapshot() == before
    assert not (guard.folder / "state/trial").exists()


def test_with_nothing_to_try_nobody_is_asked(guard: Guard, kernel: Nftables) -> None:
    """Whether the files are as they were, or say the same in other words; and no trace of it is left."""
    before = kernel.snapshot()
    same = guard.folder / "same.toml"
    same.write_text(f"# in other words\n{guard.config.read_text()}")
    for arguments in ((), (str(same),)):
        done = guard.cli("try", *arguments)
        told = "nothing to try: the rules are those of the configuration already\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    guard.config.write_text(same.read_text())
    assert guard.cli("try").returncode == 0
    assert (kernel.snapshot(), guard.status()["state"]) == (before, "protected")
    assert not (guard.folder / "state/trial").exists()
    assert "trial" not in guard.log()


# The daemon's side, with a kernel in memory


class Side(NamedTuple):
    """The daemon's side of a trial."""

    trials: Trials
    keeper: Keeper
    kernel: FakeKernel

    def begin(self, config_file: Path) -> None:
        """Put the files on trial, as they are now."""
        self.trials.begin(lastgood.read(config_file, {}), "0" * 16, 60)

    def run(self, cause: Cause) -> NftguardError | None:
        """Take the one path, as the daemon does."""
        self.keeper.pace.wake(cause)
        error = self.keeper.run()
        self.trials.follow()
        return error


@pytest.fixture
def side(config_file: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Side:
    assert folders.exists()
    for name in ("ready", "reloading", "status"):
        monkeypatch.setattr(notify, name, lambda _: None)
    kernel = FakeKernel()
    keeper = Keeper(config_file, kernel, Surroundings())
    side = Side(Trials(config_file, keeper), keeper, kernel)
    assert side.run(Cause.START) is None
    config_file.write_text(NEW)
    return side


def test_totals_that_a_trial_puts_aside_come_back(side: Side, config_file: Path) -> None:
    trials, kernel = side.trials, side.kernel
    assert kernel.table

    def count(name: str, packets: int) -> None:
        assert kernel.table
        made: dict[str, Counter] = {**kernel.table.counters, name: Counter(name, packets, packets * 60)}
        object.__setattr__(kernel.table, "counters", made)

    count("mail.output.tcp.25", 7)
    count("mail.output.tcp.995", 5)
    side.begin(config_file)
    count("mail.output.tcp.25", 9)
    assert side.run(Cause.TIMER) is None
    kept = lastgood.load()
    assert kept
    assert kept.counters["mail.output.tcp.995"].packets == 5, "also for a start in between"
    trials.end("test")
    assert [kernel.table.counters[f"mail.output.tcp.{port}"].packets for port in (25, 995)] == [9, 5]


def test_they_come_back_also_where_that_takes_two_attempts(side: Side, config_file: Path) -> None:
    trials, kernel = side.trials, side.kernel
    assert kernel.table
    count = {name: Counter(name, 7, 420) for name in kernel.table.counters}
    object.__setattr__(kernel.table, "counters", count)
    side.begin(config_file)
    kernel.refusing = "no"
    trials.end("test")
    assert trials.trial is None
    kernel.refusing = ""
    assert side.run(Cause.TIMER) is None
    assert kernel.table.counters == count


def test_who_applies_the_configuration_decides(side: Side, config_file: Path) -> None:
    side.begin(config_file)
    assert side.run(Cause.RELOAD) is None
    assert (side.trials.trial, side.trials.due) == (None, None)
    tried = side.kernel.table
    side.trials.end("test")
    assert side.run(Cause.TIMER) is None
    assert side.kernel.table == tried
    assert side.keeper.bulletin.standing.state is State.PROTECTED


def answered(side: Side, config_file: Path, verb: str, word: str = "0" * 16) -> Answer:
    return side.trials.answer(Request(verb, str(config_file), 0, {"trial": word, "seconds": 60}))


def test_an_answer_that_comes_too_late_is_told_how_the_trial_ended(side: Side, config_file: Path) -> None:
    def ended(verb: str) -> tuple[int, str]:
        found = answered(side, config_file, verb)
        return found.exit, found.text

    now = "2 tcp ports blocked on output"
    side.begin(config_file)
    assert side.run(Cause.RELOAD) is None
    assert ended("confirm") == (0, f"kept: {APPLIED}; {now}")
    assert ended("rollback") == (1, f"kept: {APPLIED}; {now}"), "what was asked for is not done"
    config_file.write_text(NEW.replace("26", "27"))
    side.begin(config_file)
    config_file.write_text(NEW.replace("26", "28"))
    assert side.run(Cause.RELOAD) is None
    assert ended("confirm") == (1, f"over: {APPLIED}; {now}"), "but not what was tried"
    assert answered(side, config_file, "confirm", "1" * 16).text == f"not kept: the trial is over; {now}"
    for why, told in (
        ("nftguard pause", "the rules were lifted elsewhere"),
        ("nftguard remove", "the rules were lifted elsewhere"),
        ("not confirmed in time", "not confirmed in time"),
    ):
        config_file.write_text(NEW)
        side.begin(config_file)
        side.trials.end(why)
        assert ended("confirm")[0] == 1
        assert ended("confirm")[1].startswith(f"over: {told}; {now}; DEGRADED: ")


def test_rules_that_do_not_come_back_are_not_said_to_be_back(side: Side, config_file: Path) -> None:
    side.begin(config_file)
    side.kernel.refusing = "no"
    found = answered(side, config_file, "rollback")
    refused = "the kernel refused to apply: no; it is tried again"
    assert (found.exit, found.text) == (1, f"not kept, but the old rules are not back yet: {refused}")


def test_the_same_ports_listed_otherwise_are_nothing_to_try(side: Side, config_file: Path) -> None:
    config_file.write_text('[[block]]\nname = "mail"\nports = ["@mail"]\n')
    assert side.run(Cause.RELOAD) is None
    trial.offer("0" * 16, load(config_file, config_file))
    arguments: dict[str, str | int | bool] = {"trial": "0" * 16, "seconds": 60, "offered": True}
    found = side.trials.answer(Request("try", str(config_file), 0, arguments))
    assert (found.exit, found.text, side.trials.trial) == (0, trial.NOTHING, None)


def test_what_the_kernel_refuses_is_not_on_trial(side: Side, config_file: Path) -> None:
    trials, keeper, kernel = side.trials, side.keeper, side.kernel
    before, kernel.refusing = kernel.table, "no"
    with pytest.raises(KernelError):
        side.begin(config_file)
    kernel.refusing = ""
    assert (side.run(Cause.TIMER), trials.trial, kernel.table) == (None, None, before)
    assert keeper.bulletin.standing.state is State.PROTECTED


def test_what_the_kernel_took_in_part_is_taken_back(
    side: Side, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What concerns control groups is a transaction of its own, which may fail by itself."""
    trials, kernel = side.trials, side.kernel
    before, apply = kernel.table, kernel.apply

    def fail_late(plan: Plan) -> None:
        apply(plan)
        if "26" in str(plan) and kernel.table and kernel.table != before:
            emptied = {name: replace(found, elements={}) for name, found in kernel.table.maps.items()}
            kernel.table = replace(kernel.table, maps=emptied)
            raise KernelError("apply", "no")

    monkeypatch.setattr(kernel, "apply", fail_late)
    with pytest.raises(KernelError):
        side.begin(config_file)
    assert (trials.trial, kernel.table) == (None, before)


def test_nobody_confirms_or_ends_a_trial_of_somebody_else(side: Side, config_file: Path) -> None:
    trials = side.trials

    def ask(verb: str, word: str, seconds: int = 0) -> int:
        return trials.answer(Request(verb, str(config_file), 0, {"trial": word, "seconds": seconds})).exit

    assert ask("try", "0" * 16, 0) == 1
    assert ask("try", "../../etc/passwd", 60) == 1
    assert ask("try", "0" * 16, 60) == 0
    for verb in ("confirm", "rollback", "try"):
        assert ask(verb, "1" * 16, 60) == 1
    assert trials.trial
    assert trials.trial.word == "0" * 16
    assert ask("confirm", "0" * 16) == 0
    assert trials.trial is None


def test_a_trial_that_cannot_be_kept_in_force_ends(side: Side, config_file: Path) -> None:
    trials, kernel = side.trials, side.kernel
    before = kernel.table
    side.begin(config_file)
    kernel.table, kernel.refusing = None, "no"
    assert isinstance(side.run(Cause.RULESET), KernelError)
    assert trials.trial is None
    kernel.refusing = ""
    assert side.run(Cause.TIMER) is None
    assert kernel.table == before


def test_a_refused_reload_decides_nothing(side: Side, config_file: Path) -> None:
    trials, keeper, kernel = side.trials, side.keeper, side.kernel
    before = kernel.table
    side.begin(config_file)
    tried = kernel.table
    config_file.write_text("[")
    assert isinstance(side.run(Cause.RELOAD), ConfigError)
    assert (trials.trial is not None, kernel.table) == (True, tried)
    trials.end("test")
    assert kernel.table == before
    assert "is not valid TOML" in keeper.bulletin.sentence()


def test_what_could_not_be_undone_after_a_crash_is_not_tried(
    side: Side, config_file: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, kernel = side.trials, side.kernel
    before = kernel.table
    (folders / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", str(folders / "file/state"))
    with pytest.raises(OSError, match="Not a directory"):
        side.begin(config_file)
    assert (trials.trial, kernel.table) == (None, before)


def test_the_files_that_are_in_force_come_into_no_doubt(side: Side, config_file: Path) -> None:
    trials, keeper = side.trials, side.keeper
    assert side.run(Cause.RELOAD) is None
    side.begin(config_file)
    trials.end("test")
    assert not lastgood.path().with_name("trial").exists()
    assert keeper.bulletin.standing.state is State.PROTECTED


def test_an_offer_is_read_back_as_it_was(folders: Path, config_file: Path) -> None:
    config_file.write_text('[[block]]\nname = "all"\nports = ["1-65535"]\nexcept_ports = [22]\n')
    found = load(folders / "none.toml", config_file)
    path = trial.offer("0" * 16, found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert trial.offered("0" * 16) == found
    path.unlink()
    with pytest.raises(ValueError, match="is not there"):
        trial.offered("0" * 16)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        trial.offered("0" * 16)
    path.unlink()
    path.touch()
    os.truncate(path, (16 << 20) + 1)
    with pytest.raises(ValueError, match="larger than 16 MiB"):
        trial.offered("0" * 16)
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        load(config_file, folders / "none.toml")
