"""The service: sockets, signals and timers to wake-ups, and every wake-up to the one reconcile path."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, control, hostinfo, nftscript, notify, policy, state, status
from nftguard.bulletin import Bulletin
from nftguard.config import Config, load
from nftguard.errors import NftguardError, NotPermittedError, UnavailableError
from nftguard.journal import JournalSink, log
from nftguard.model import Hook
from nftguard.nflog import Reader
from nftguard.pace import Cause, Pace
from nftguard.plan import Plan, create, remove
from nftguard.reconcile import reconcile
from nftguard.status import Standing, State
from nftguard.watch import Change, NetworkWatch, RulesetWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.kernel import Kernel

_ELSEWHERE = "the running daemon guards another network namespace"
_CHANGES = 100  # kept to find who changed the ruleset; a storm must not fill the memory


class Daemon:
    """One run of the service. `run` ends on SIGTERM and SIGINT."""

    def __init__(self, path: Path, kernel: Kernel, sink: JournalSink | None) -> None:
        self._path = path
        self._kernel = kernel
        self._sink = sink
        self._config = Config()
        self._pace = Pace(time.monotonic, self._config.service.resync)
        self._bulletin = Bulletin()
        self._selector = selectors.DefaultSelector()
        self._reader: Reader | None = None
        self._changes: list[Change] = []
        self._stopping = False

    def run(self) -> None:
        """Protect until told to stop.

        Raises ConfigError when the configuration is refused at the start, and KernelError when the kernel refuses it.
        """
        with state.lock():
            self._listen()
            self._pace.wake(Cause.START)
            self._pass()
            self._warn_of_forwarding()
            alive_every = notify.watchdog_interval()
            alive_at = time.monotonic()
            while not self._stopping:
                if alive_every and time.monotonic() >= alive_at:
                    notify.alive()
                    alive_at = time.monotonic() + alive_every
                for key, _ in self._selector.select(self._wait(alive_at if alive_every else None)):
                    key.data()
                if self._sink:
                    self._sink.flush()
                if self._pace.wait() <= 0:
                    self._pass()
                if self._bulletin.tell_at is not None and time.monotonic() >= self._bulletin.tell_at:
                    self._bulletin.tell()
            self._stop()

    def _wait(self, alive_at: float | None) -> float:
        """Give the seconds that the loop may sleep."""
        now = time.monotonic()
        due = [self._pace.wait()]
        due += [at - now for at in (alive_at, self._bulletin.tell_at) if at is not None]
        if self._sink and self._sink.waiting:
            due.append(0.2)  # journald takes nothing: look again soon
        return max(0.0, min(due))

    # Waking up

    def _listen(self) -> None:
        """Open every socket, those of the ruleset before the first snapshot, so that no change falls in between."""
        try:
            self._ruleset, self._network = RulesetWatch(), NetworkWatch()
        except PermissionError:
            raise NotPermittedError("watch the ruleset") from None
        except OSError as error:
            raise UnavailableError(f"the kernel's events cannot be watched: {error.strerror}") from None
        self._selector.register(self._ruleset.socket, selectors.EVENT_READ, self._on_ruleset)
        self._selector.register(self._network.socket, selectors.EVENT_READ, self._on_network)
        self._signals, wakeup = socket.socketpair()
        for end in (self._signals, wakeup):
            end.setblocking(False)
        self._wakeup = wakeup  # kept: signal writes to its number
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        path = Path(bootscript.run_dir()) / "control"
        try:
            self._control = control.Server(path, self._on_request)
        except OSError as error:
            raise UnavailableError(f"the control socket {path} cannot be made: {error.strerror}") from None
        self._selector.register(self._control.socket, selectors.EVENT_READ, self._on_client)

    def _on_ruleset(self) -> None:
        changes = self._ruleset.read()
        self._changes = (self._changes + changes)[:_CHANGES]
        if changes:
            self._pace.wake(Cause.RULESET)

    def _on_network(self) -> None:
        if self._network.read():
            self._pace.wake(Cause.NETWORK)

    def _on_signal(self) -> None:
        for number in self._signals.recv(4096):
            if number == signal.SIGHUP:
                self._pace.wake(Cause.RELOAD)
            else:
                self._stopping = True

    def _on_client(self) -> None:
        if client := self._control.accept():

            def answer() -> None:
                self._selector.unregister(client)
                self._control.answer(client)

            self._selector.register(client, selectors.EVENT_READ, answer)

    def _on_request(self, request: control.Request) -> control.Answer:
        if request.namespace != state.namespace():
            return control.Answer(1, f"{_ELSEWHERE}; set RUNTIME_DIRECTORY and STATE_DIRECTORY to run one beside it")
        if request.config != str(self._path.absolute()):
            return control.Answer(1, f"the running daemon uses {self._path.absolute()}, not {request.config}")
        match request.verb:
            case "apply":
                self._pace.wake(Cause.RELOAD)
                if error := self._pass():
                    return control.Answer(error.exit_code, str(error))
                return control.Answer(0, self._bulletin.sentence())
            case "remove":
                try:
                    self._lift("nftguard remove")
                except NftguardError as error:
                    return control.Answer(error.exit_code, str(error))
                self._bulletin.suspended = True
                self._bulletin.tell()
                return control.Answer(0, "rules lifted; the daemon waits for `nftguard apply` or a restart")
        return control.Answer(
            1, f"this daemon does not know the verb {request.verb!r}; is it of an older version? restart it"
        )

    def _on_packets(self, reader: Reader) -> None:
        for attempt in reader.read():
            self._bulletin.attempt(attempt)
        if lost := reader.take_lost():
            self._bulletin.lost(lost)

    # The one path

    def _pass(self) -> NftguardError | None:
        """Reconcile once, and tell; give the error that kept it from being done. Raises it at the start."""
        causes = self._pace.take()
        changes, self._changes = self._changes, []
        start, fresh = Cause.START in causes, bool(causes & {Cause.START, Cause.RELOAD})
        bulletin = self._bulletin
        if bulletin.suspended and not fresh:
            return None
        announced = False
        failure: NftguardError | None = None

        def announce() -> None:
            nonlocal announced
            if not start and not announced:
                notify.reloading(f"reapplying after a {_told(causes)}")
                announced = True

        if fresh:
            announce()
        mark = bootscript.fingerprint(str(self._path)) if fresh else ""
        try:
            config = load(self._path) if fresh else self._config
            desired = policy.build(config) if fresh else bulletin.desired
            working: Callable[[], None] = announce if Cause.NETWORK in causes else lambda: None
            outcome = reconcile(self._kernel, desired, working)
        except NftguardError as error:
            if start:
                raise
            failure = error
            self._failed(error, reload=fresh)
        else:
            self._config = config
            self._pace.resync = bulletin.resync = config.service.resync
            self._pace.ended(ok=True)
            if fresh:
                bulletin.refused, bulletin.suspended = (), False
            bulletin.passed(outcome, desired)
            if fresh:
                self._read_attempts()
                self._save(mark)
                changed = len(outcome.plan.steps)
                log().info("applied", summary=status.summary(desired), cause=_told(causes), changes=changed)
            elif outcome.plan:
                # Our own last transaction is among what was read, and is not at fault.
                change = next((change for change in changes if change.pid not in {0, os.getpid()}), None)
                self._pace.repaired()
                if self._pace.fighting:
                    bulletin.fought(self._pace.repairs, change)
                else:
                    bulletin.repaired(outcome, _told(causes), change)
        if start or announced:
            notify.ready(bulletin.sentence())
        bulletin.tell()
        return failure

    def _failed(self, error: NftguardError, *, reload: bool) -> None:
        if reload:
            self._bulletin.refuse(error)
            return
        self._pace.ended(ok=False)
        try:
            live = self._kernel.snapshot()
        except NftguardError:
            live = None  # who cannot look must not claim to be protected
        self._bulletin.failed(error, live, self._pace.wait())

    def _lift(self, cause: str) -> None:
        if self._kernel.snapshot() is not None:
            self._kernel.apply(remove())
        self._bulletin.standing = Standing(State.UNPROTECTED, (f"lifted by {cause}",))
        log().warning("removed", cause=cause)

    def _stop(self) -> None:
        notify.stopping("stopping")
        if self._config.service.on_stop == "remove":
            self._lift("the service was stopped")
        else:
            log().warning("kept")
        self._control.close()
        (Path(bootscript.run_dir()) / "status.json").unlink(missing_ok=True)
        if self._sink:
            self._sink.flush()

    def _read_attempts(self) -> None:
        """Open the NFLOG group that the configuration names, if it is not open yet."""
        wanted = self._config.log.group if self._config.log.target == "journal" else None
        if self._reader and self._reader.group != wanted:
            self._selector.unregister(self._reader.socket)
            self._reader.close()
            self._reader = None
        if wanted is not None and not self._reader:
            try:
                reader = self._reader = Reader(wanted)
            except UnavailableError as error:
                log().warning("attempts_unread", reason=error)
                return
            self._selector.register(reader.socket, selectors.EVENT_READ, lambda: self._on_packets(reader))

    def _save(self, mark: str) -> None:
        script = nftscript.script(Plan(tuple(create(self._bulletin.desired))))
        try:
            state.save_boot_script(self._path, script, mark)
        except OSError as error:
            self._bulletin.complain(Path(bootscript.state_dir()) / bootscript.NAME, error)

    def _warn_of_forwarding(self) -> None:
        ways = hostinfo.forwarding()
        if ways and not any(Hook.FORWARD in block.hooks for block in self._config.block):
            log().warning("forward_open", ways=", ".join(ways))


def _told(causes: frozenset[Cause]) -> str:
    return ", ".join(cause for cause in Cause if cause in causes)
