"""One configuration on trial: in force for a while, and gone by itself unless somebody says in time that it may stay.

The daemon keeps the time, so that nobody need be there at the end. Its own death is provided for, too: it starts with
the last good policy, which a trial is not, and does not take files that were tried and not confirmed (`lastgood`).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, folder, lastgood, notify, state
from nftguard.config import Config
from nftguard.control import Answer
from nftguard.errors import EX_FAILED, NftguardError
from nftguard.journal import log
from nftguard.lastgood import UNKNOWN, LastGood
from nftguard.reconcile import Outcome
from nftguard.status import Standing, State, summary, told_changes

if TYPE_CHECKING:
    from nftguard.control import Request
    from nftguard.keeper import Keeper

LONGEST = 3600  # seconds
NOTHING = "nothing to try: the rules are those of the configuration already"
"""The answer that begins no trial, and is no failure."""
_LIFTING = ("nftguard pause", "nftguard remove")
_APPLIED = "nftguard apply or a reload was run elsewhere"
_WORD = re.compile(r"[0-9a-f]{16}")
_MOST = 16 << 20  # bytes of an offer; 65,535 listed ports are under 1 MiB
_NAMED = 10  # differences that an answer names


@dataclass(frozen=True, slots=True)
class Trial:
    """What is on trial, and how things were before."""

    policy: LastGood
    word: str
    """By which its asker knows it; nobody confirms another's."""
    due: float
    """When it ends, in seconds on the monotonic clock."""
    until: str
    """The same for people: `15:04:05`."""
    before: LastGood
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended before its asker answered."""

    word: str
    kept: bool
    """Whether what was tried stays in force."""
    why: str


class Trials:
    """The daemon's side: `try`, `confirm` and `rollback`, and what else ends a trial."""

    def __init__(self, path: Path, keeper: Keeper) -> None:
        self._path = path
        self._keeper = keeper
        self._bulletin = keeper.bulletin
        self.trial: Trial | None = None
        self._ended: Ended | None = None  # the last one that did so without its asker

    @property
    def due(self) -> float | None:
        """Give the moment, on the monotonic clock, at which the trial is over; None where there is none."""
        return self.trial.due if self.trial else None

    def answer(self, request: Request) -> Answer:
        """Carry out one of the three verbs."""
        word = str(request.arguments.get("trial"))
        if not _WORD.fullmatch(word):
            return Answer(EX_FAILED, "not a trial's name")
        if request.verb == "try":
            return self._try(request, word)
        if self.trial is None or self.trial.word != word:
            return self._too_late(request.verb, word)
        if request.verb == "rollback":
            return self._rollback()
        try:
            self._confirm()
        except OSError as error:
            return Answer(EX_FAILED, f"kept until the next start, but not beyond: {error.strerror}: {error.filename}")
        return Answer(0, f"kept: {self._bulletin.sentence()}")

    def _too_late(self, verb: str, word: str) -> Answer:
        """Say how the trial ended before; to find it kept is what one who confirms it wants."""
        now = self._bulletin.sentence()
        if self._ended is None or self._ended.word != word:
            return Answer(EX_FAILED, f"not kept: the trial is over; {now}")
        if self._ended.kept:
            return Answer(0 if verb == "confirm" else EX_FAILED, f"kept: {self._ended.why}; {now}")
        return Answer(EX_FAILED, f"over: {self._ended.why}; {now}")

    def _rollback(self) -> Answer:
        self.end("not confirmed")
        if isinstance(error := self._keeper.last, NftguardError):
            return Answer(EX_FAILED, f"not kept, but the old rules are not back yet: {error}; it is tried again")
        if not lastgood.in_doubt(self._path, self._keeper.policy):
            return Answer(0, f"not kept: the old rules are back: {self._bulletin.sentence()}")
        back = f"not kept: the old rules are back: {summary(self._bulletin.desired)}"
        still = f"{self._path} still has what you tried: edit it, or `nftguard apply` takes it"
        return Answer(0, f"{back}\n{still}")

    def _try(self, request: Request, word: str) -> Answer:
        if self.trial:
            return Answer(
                EX_FAILED, f"another configuration is on trial until {self.trial.until}; wait, or answer it there"
            )
        if self._bulletin.suspended:
            return Answer(EX_FAILED, f"nothing is blocked, {self._bulletin.suspended}; end that with `nftguard apply`")
        try:
            seconds = request.seconds(LONGEST)
            if request.arguments.get("offered"):
                policy = LastGood(offered(word), {}, UNKNOWN)
            else:
                policy = lastgood.read(self._path, {})
                if policy.mark == UNKNOWN:
                    raise NftguardError(f"{self._path} changed while it was read; try again")
            if self._in_force(policy):
                return Answer(0, NOTHING)
            outcome = self.begin(policy, word, seconds)
        except NftguardError as error:
            return Answer(error.exit_code, str(error))
        except (OSError, ValueError, RecursionError) as error:
            return Answer(EX_FAILED, f"not tried, because it could not be undone or read: {error}")
        found, changes = outcome.plan.found, told_changes(len(outcome.plan))
        lines = [f"  {difference}" for difference in found[:_NAMED]]
        lines += [f"  and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
        told = f"on trial until {clock(seconds)}: {summary(self._bulletin.desired)} ({changes})"
        return Answer(0, "\n".join((told, *lines)))

    def _in_force(self, policy: LastGood) -> bool:
        """Whether it says what the one in force does, however its ports are listed."""
        failing = isinstance(self._keeper.last, NftguardError)
        return not failing and lastgood.dump(policy.config) == lastgood.dump(self._keeper.policy.config)

    def begin(self, policy: LastGood, word: str, seconds: int) -> Outcome:
        """Put a policy in force for so many seconds, which `due` ends; `end` puts the good one back.

        Raises KernelError, and OSError where what undoes it could not be kept; the good one is in force then.
        """
        before = self._keeper.policy
        self._keeper.keep()
        if policy.files and policy.mark != before.mark:
            lastgood.doubt(policy.files)
        notify.reloading("putting a configuration on trial")
        until = clock(seconds)
        standing = Standing(State.DEGRADED, (f"on trial until {until}, then the rules before it are back",))
        try:
            outcome = self._keeper.put(policy, standing)
            self.trial = Trial(policy, word, time.monotonic() + seconds, until, before, self._bulletin.refused)
            self._bulletin.refused = ()
        finally:
            notify.ready(self._bulletin.sentence())
        changes = told_changes(len(outcome.plan))
        log().info("trial_begun", until=until, summary=summary(self._bulletin.desired), changes=changes)
        self._keeper.tell()
        return outcome

    def _confirm(self) -> None:
        """Make the policy on trial the last good one. Raises OSError where it could not be kept; it is in force."""
        self.trial = None
        self._keeper.accept()
        self._record("confirmed", told_changes(0), kept=True)
        self._keeper.tell()
        self._keeper.keep()

    def end(self, why: str) -> None:
        """Put the rules before it back, if there is a trial. What fails is tried again, as after any failed pass."""
        if not self.trial:
            return
        ended, self.trial = self.trial, None
        self._ended = Ended(ended.word, kept=False, why="the rules were lifted elsewhere" if why in _LIFTING else why)
        doubt = lastgood.in_doubt(self._path, ended.before)
        kept = self._bulletin.refused or ended.refused
        self._bulletin.refused = (lastgood.not_confirmed(self._path),) if doubt else kept
        notify.reloading("ending a trial")
        outcome = self._keeper.back()
        notify.ready(self._bulletin.sentence())
        self._record(why, told_changes(len(outcome.plan)) if outcome else "not done yet")
        self._keeper.tell()

    def follow(self) -> None:
        """Follow what a pass came to: who applied the configuration decided, and what cannot be kept in force ends."""
        match self._keeper.last:
            case NftguardError() as error:
                self.end(str(error))
            case Outcome() as outcome if self.trial and self.trial.policy is not self._keeper.policy:
                ended, self.trial = self.trial, None
                kept = self._in_force(ended.policy)  # else the files are others by now, or were not what was tried
                self._ended = Ended(ended.word, kept, _APPLIED)
                self._record("the configuration was applied", told_changes(len(outcome.plan)), kept=kept)

    def _record(self, why: str, changes: str, *, kept: bool = False) -> None:
        fields = {"why": why, "summary": summary(self._bulletin.desired), "changes": changes}
        if kept:
            log().info("trial_ended", **fields)
        else:
            log().warning("trial_ended", **fields)


def clock(seconds: float) -> str:
    """Say what time it is in so many seconds: `15:04:05`."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))


def offer(word: str, config: Config) -> Path:
    """Lay down a configuration for the daemon; give its file. Raises OSError."""
    path = _offer(word)
    state.write(path, json.dumps(lastgood.dump(config)), 0o600)
    return path


def offered(word: str) -> Config:
    """Read it back, in the daemon. Raises OSError, ValueError and RecursionError."""
    path = _offer(word)
    data = folder.read(path, _MOST)
    if data is None or len(data) > _MOST:
        raise ValueError(f"{path} {'is not there' if data is None else 'is larger than 16 MiB'}")
    return Config.model_validate(json.loads(data))


def _offer(word: str) -> Path:
    return Path(bootscript.run_dir()) / f"trial-{word}.json"
