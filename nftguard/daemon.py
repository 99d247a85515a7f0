"""The service: sockets, signals and timers to wake-ups, and every wake-up to the one reconcile path."""

from __future__ import annotations

import selectors
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, control, notify, state, unitjob
from nftguard.allowed import book, desk
from nftguard.attempts.recorder import Recorder
from nftguard.errors import NftguardError, NotPermittedError, UnavailableError
from nftguard.journal import JournalSink, log
from nftguard.keeper import Keeper
from nftguard.pace import Cause
from nftguard.resolver.known import Names
from nftguard.surroundings import Surroundings, needs_units, watched_accounts
from nftguard.trial import Trials, clock
from nftguard.wire.watch import NetworkWatch, RulesetWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.folder import Watch
    from nftguard.kernel import Nftables
    from nftguard.wire.nflog import Reader

_LONGEST = 86400  # seconds that a pause may last
_ELSEWHERE = "the running daemon guards another network namespace"


class Daemon:
    """One run of the service. `run` ends on SIGTERM and SIGINT."""

    def __init__(self, path: Path, kernel: Nftables, sink: JournalSink | None) -> None:
        self._path = path
        self._kernel = kernel
        self._sink = sink
        self._names = Names()
        self._surroundings = Surroundings(
            lambda: self._recorder.attribution.tree, self._names, trouble=lambda: self._recorder.attribution.problem
        )
        self._keeper = Keeper(path, kernel, self._surroundings, self._on_ruleset)
        self._pace, self._bulletin, self._book = self._keeper.pace, self._keeper.bulletin, self._keeper.book
        self._trials = Trials(path, self._keeper)
        self._selector = selectors.DefaultSelector()
        self._control: control.Server | None = None
        self._recorder = Recorder(kernel.nfnl, self._bulletin, sink)
        self._desk = desk.Desk(self._keeper, self._surroundings, self._recorder.attribution.begin, kernel)
        self._resume_at: float | None = None  # seconds on the monotonic clock
        self._reload_asked = self._stopping = False
        self._duties: tuple[tuple[Callable[[], float | None], Callable[[], object]], ...] = (
            (lambda: self._resume_at, self._resume),
            (lambda: self._trials.due, self._end_trial),
            (self._book.due, self._end_allowances),
            (self._names.due, self._on_names),
            (self._recorder.due, self._recorder.tick),
            (lambda: self._bulletin.tell_at, self._bulletin.tell),
            (lambda: self._bulletin.freshen_at, self._keeper.freshen),
        )
        """When, on the monotonic clock, what is to be done."""

    def run(self) -> None:
        """Protect until told to stop.

        Raises ConfigError when the configuration is refused at the start, and KernelError when the kernel refuses it.
        """
        with state.lock():
            self._listen()
            if self._kernel.features.flags:
                notify.keep(self._kernel.socket)  # so that the next process is the owner that this one is
            self._pace.wake(Cause.START)
            if (kept := self._keeper.good) and needs_units(kept.config, self._book.current()):
                self._recorder.attribution.begin()  # or the first pass would empty what an earlier process filled
            self._pass()
            if self._book.ignored:
                log().warning("allowances_ignored", path=book.path(), reason=self._book.ignored)
            alive_every = notify.watchdog_interval()
            alive_at = time.monotonic()
            while not self._stopping:
                if alive_every and time.monotonic() >= alive_at:
                    notify.alive()
                    alive_at = time.monotonic() + alive_every
                if self._surroundings.moved(self._keeper.policy.config, self._book.current()):
                    self._pace.wake(Cause.HOST)
                for key, _ in self._selector.select(self._wait(alive_at if alive_every else None)):
                    key.data()
                if self._sink:
                    self._sink.flush()
                    self._bulletin.records_dropped = self._sink.dropped
                if self._reload_asked:
                    self._reload_asked = False
                    self._pace.wake(Cause.RELOAD)
                for due, do in self._duties:
                    if (at := due()) is not None and time.monotonic() >= at:
                        do()
                if self._pace.wait() <= 0:
                    self._pass()
            self._stop()

    def _wait(self, alive_at: float | None) -> float:
        """Give the seconds that the loop may sleep."""
        now = time.monotonic()
        ends = [at for at in (alive_at, *(due() for due, _ in self._duties)) if at is not None]
        due = [self._pace.wait(), *(at - now for at in ends)]
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
        for number in bootscript.SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, bootscript.SIGNALS)
        self._selector.register(self._signals, selectors.EVENT_READ, lambda: self._signals.recv(4096))
        if self._names.fd is not None:
            self._selector.register(self._names.fd, selectors.EVENT_READ, self._names.hear)
        for accounts in watched_accounts():
            self._selector.register(accounts.fd, selectors.EVENT_READ, partial(self._on_accounts, accounts))
        try:
            self._control = control.Server(control.path(), self._on_request)
        except OSError as error:  # a full /run must not keep the rules from going in
            self._bulletin.complain(control.path(), error)
        else:
            self._control.attend(self._selector)

    def _on_ruleset(self) -> None:
        self._keeper.changed(self._ruleset.read())
        self._bulletin.tally.lost["ruleset"] = self._ruleset.overruns

    def _on_network(self) -> None:
        if self._network.read():
            self._pace.wake(Cause.NETWORK)
        self._bulletin.tally.lost["network"] = self._network.overruns

    def _on_signal(self, number: int, _frame: object) -> None:
        # Flags, not what the wake-up socket says: a burst of one signal may fill it before another. And no more than
        # flags: this may run in the middle of a pass.
        if number == signal.SIGHUP:
            self._reload_asked = True
        else:
            self._stopping = True

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
            case "allow" | "deny":
                answer = self._desk.answer(request)
                if answer.exit == 0 or request.verb == "deny":
                    self._pace.wake(Cause.ALLOWANCE)
                    if error := self._pass():
                        return control.Answer(error.exit_code, f"{answer.text}; but {error}; it is tried again")
                return answer
            case "remove":
                return self._suspend("nftguard remove", "until `nftguard apply` or a restart")
            case "pause":
                try:
                    seconds = request.seconds(_LONGEST)
                except ValueError as error:
                    return control.Answer(1, str(error))
                answer = self._suspend("nftguard pause", f"until {clock(seconds)}, `nftguard apply` or a restart")
                self._resume_at = time.monotonic() + seconds if answer.exit == 0 else None
                return answer
            case "try" | "confirm" | "rollback":
                answer = self._trials.answer(request)
                self._settle()
                return answer
        return control.Answer(1, f"this daemon has no verb {request.verb!r}; is it of an older version? restart it")

    def _suspend(self, cause: str, end: str) -> control.Answer:
        self._trials.end(cause)
        try:
            self._keeper.lift(cause)
        except NftguardError as error:
            return control.Answer(error.exit_code, str(error))
        self._bulletin.suspended = end
        self._resume_at = None
        self._bulletin.tell()
        return control.Answer(0, f"rules lifted: nothing is blocked {end}")

    def _on_packets(self, reader: Reader) -> None:
        if reader is self._recorder.reader:  # else closed by a reload in the same batch of events
            self._recorder.read()

    def _pass(self) -> NftguardError | None:
        """Take the one path, and follow what a new configuration asks of this end."""
        error = self._keeper.run()
        self._trials.follow()
        self._settle()
        if not self._bulletin.suspended:
            self._resume_at = None
        return error

    def _settle(self) -> None:
        """Follow the policy in force, which may be another by now."""
        self._follow()
        self._recorder.check()

    def _resume(self) -> None:
        """End a pause."""
        self._bulletin.suspended = ""
        self._pace.wake(Cause.RESUME)

    def _stop(self) -> None:
        self._trials.end("the service was stopped")
        notify.stopping("stopping")
        asked = self._keeper.policy.config.service.on_stop == "keep"
        why = 'on_stop = "keep"' if asked else unitjob.going_on()
        try:
            if why:
                self._pace.wake(Cause.TIMER)
                self._pass()  # the last look, which saves the counters
                self._recorder.end()
                if not self._bulletin.suspended:
                    log().info("kept", why=why)
            else:
                self._recorder.end()
                self._keeper.lift("the service was stopped")
                with suppress(OSError):
                    self._names.end()
        except NftguardError as error:
            log().error("not_lifted", reason=error)
        self._book.keep()
        self._recorder.close()
        self._names.close()
        self._bulletin.tell_lost()
        if self._control:
            self._control.close()
        (Path(bootscript.run_dir()) / "status.json").unlink(missing_ok=True)
        if self._sink:
            self._sink.flush()
            self._sink.close()

    def _follow(self) -> None:
        """Read the NFLOG group that the configuration names, and follow the control groups where they are used."""
        config, recorder = self._keeper.policy.config, self._recorder
        old = recorder.reader
        recorder.follow(config.log.group if config.log.target == "journal" else None)
        if old is not recorder.reader:
            if old:
                self._selector.unregister(old.socket)
            if reader := recorder.reader:
                self._selector.register(reader.socket, selectors.EVENT_READ, lambda: self._on_packets(reader))
        if needs_units(config, self._book.current()):
            recorder.attribution.begin()
        groups = recorder.attribution.fd
        if groups is not None and groups not in self._selector.get_map():
            self._selector.register(groups, selectors.EVENT_READ, recorder.attribution.read)

    def _end_trial(self) -> None:
        self._trials.end("not confirmed in time")
        self._settle()

    def _end_allowances(self) -> None:
        if desk.tell(self._book):
            self._pace.wake(Cause.ALLOWANCE)

    def _on_names(self) -> None:
        if self._names.read():
            self._pace.wake(Cause.HOST)
        else:
            self._keeper.tell()  # why there is no answer may be news all the same

    def _on_accounts(self, watch: Watch) -> None:
        if watch.changed():
            self._pace.wake(Cause.HOST)
